"""Time whole decisions of an exported model: new bar, features, three agents, order.

    python decisions.py PACKAGE BARS.csv COUNT

A program of its own, without gm_jax and JAX, on one thread; prints the milliseconds of each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(package: str, csv: str, count: str) -> None:
    """Decide at the close of the last bars of a file, each handed over as it would come."""
    os.environ |= dict.fromkeys(THREADS, "1")  # read when NumPy and PyTorch are imported
    sys.path.insert(0, package)
    import deploy_model  # type: ignore[import-not-found]
    import torch

    torch.set_num_threads(1)
    config = json.loads((Path(package) / "model_config.json").read_text())
    system = config["system"]
    path = f"{package}/best_{system}_model.pth"
    desk = deploy_model.deploy_trading_env.Desk.open(path, system)
    bars, _ = deploy_model.market_loader.load(csv, config["bar_minutes"])
    first = len(bars) - int(count)
    desk.feed.skip(bars[:first])
    taken = []
    for bar in [bars[i : i + 1] for i in range(first, len(bars))]:
        began = time.perf_counter()
        made = desk.step(bar)
        taken.append(1e3 * (time.perf_counter() - began))
        if len(made) != 1:
            raise SystemExit(f"a bar gave {len(made)} decisions, expected 1")
    print(json.dumps(taken))


if __name__ == "__main__":
    main(*sys.argv[1:])
