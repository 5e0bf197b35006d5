"""Time how long `gm-jax train` takes until its first iteration begins: never compiled, then again.

    python benchmarks/start.py                    # tactical, on `planted`
    python benchmarks/start.py strategic --repeats 5 --set num_envs=1024

What is not known here is passed on to `gm-jax train`. Compiled programs are kept in a folder made
for this and deleted. A process is ended when it has written model_config.json, the last thing that
it does before it trains.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


POLL_SECONDS = 0.005
LIMIT_SECONDS = 600


def seconds_to_first_iteration(flags: list[str], run: Path, cache: Path) -> float:
    """Start a run in a process of its own; return the seconds until it trains.

    Raises:
        SystemExit: it ended, or took too long, without one.
    """
    command = [sys.executable, "-m", "gm_jax", "train", *flags, f"--out={run}"]
    variables = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    ready, began = run / "model_config.json", time.monotonic()
    log = run.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() - began > LIMIT_SECONDS:
                raise SystemExit(f"no first iteration:\n{log.read_text()}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Print the first start, and the median and range of those after it, seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", nargs="?", default="tactical")
    parser.add_argument("--repeats", type=int, default=9, help="starts after the first")
    known, flags = parser.parse_known_args()
    if not any(flag.startswith(("--market", "--data", "--config")) for flag in flags):
        flags.append("--market=planted")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        times = [
            seconds_to_first_iteration([known.system, *flags], base / str(i), base / "compiled")
            for i in range(1 + known.repeats)
        ]
    print(f"first start {times[0]:.2f} s")
    if more := times[1:]:
        print(
            f"{len(more)} starts after it, median {statistics.median(more):.2f} s "
            f"({min(more):.2f} to {max(more):.2f})"
        )


if __name__ == "__main__":
    main()
