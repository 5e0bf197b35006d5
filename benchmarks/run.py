"""Measure this machine and write the table of benchmarks/README.md.

    python benchmarks/run.py cpu      # measure the rows for CPUs, append to results.jsonl, render
    python benchmarks/run.py gpu      # the same for one GPU
    python benchmarks/run.py render   # write the table anew from results.jsonl

`--only WORD` takes the rows whose name holds the word.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
RESULTS, README = HERE / "results.jsonl", HERE / "README.md"
ROWS_AT_ONCE = 2**17  # most rows of a minibatch on a GPU
HALF = "XLA_PYTHON_CLIENT_MEM_FRACTION=.5"  # leaves PyTorch as much of a GPU's memory
COLD = "JAX_ENABLE_COMPILATION_CACHE=false"
HEADINGS = (
    *("training steps/s", "share of ceiling", "environment-only steps/s", "compile s"),
    *("from cache s", "program MiB", "PyTorch steps/s", "times PyTorch", "decision ms", "measured"),
)


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    command: str  # of gm-jax
    cores: int = 0  # 0: all there are
    variable: str = ""  # of the environment, NAME=VALUE

    @property
    def shown(self) -> str:
        """The command as a person types it."""
        pinned = f"taskset -c {','.join(map(str, range(self.cores)))}" if self.cores else ""
        return " ".join(filter(None, [self.variable, pinned, "gm-jax", self.command]))


def cpu_rows() -> list[Row]:
    """Return what is measured on CPUs: one rollout a window where there are many environments."""
    sizes = {
        64: "--compare --decision",
        128: "--set episode_length=125",
        512: "--set episode_length=125 --compare",
        4096: "--set episode_length=16 --set rollout_length=16 --set num_minibatches=16",
    }
    rows = []
    for cores in (1, 2):
        on = f"{cores} core" + "s" * (cores > 1)
        rows += [
            Row(f"tactical, {n}, {on}", f"bench tactical --num-envs {n} {flags}", cores)
            for n, flags in sizes.items()
        ]
        flags = "--set episode_length=125 --compare --decision"
        rows.append(Row(f"strategic, 64, {on}", f"bench strategic --num-envs 64 {flags}", cores))
    rows += [  # how long the history is should not matter
        Row(f"tactical, 64, {n:,} bars", f"bench tactical --num-envs 64 --set market_bars={n}", 1)
        for n in (50_000, 1_000_000)
    ]
    return rows


def gpu_rows() -> list[Row]:
    """Return what is measured on one GPU."""
    rows = []
    for system in ("tactical", "strategic"):
        for precision in ("float32", "tensorfloat32", "bfloat16"):
            for n in (256, 1_024, 4_096, 16_384, 65_536):
                length = 125 if n < 16_384 else 25  # a rollout and its values fit the memory
                minibatches = max(4, 2 ** math.ceil(math.log2(n * length / ROWS_AT_ONCE)))
                sets = {"precision": precision, "rollout_length": length}
                sets |= {"episode_length": length, "num_minibatches": minibatches}
                flags = " ".join(f"--set {key}={value}" for key, value in sets.items())
                command = f"bench {system} --num-envs {n} {flags}"
                row = Row(f"{system}, {n}, {precision}", command)
                if n in (1_024, 4_096):
                    row = replace(row, command=f"{command} --compare", variable=HALF)
                rows.append(row)
    whole = "train tactical --set num_envs=1024"
    return [*rows, Row("a whole default run, tactical, 1024", whole, variable=COLD)]


TABLES = {"cpu": cpu_rows, "gpu": gpu_rows}


def measure(row: Row, where: str) -> dict[str, Any] | None:
    """Run one row in a process of its own; return its record, None where it failed."""
    environment = dict(os.environ)
    if where == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    if row.variable:
        name, value = row.variable.split("=")
        environment[name] = value
    measured = commit()
    pin = partial(os.sched_setaffinity, 0, range(row.cores)) if row.cores else None
    done = subprocess.run(
        [sys.executable, "-m", "gm_jax", *shlex.split(row.command), "--json"],
        cwd=HERE.parent,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pin,
    )
    if done.returncode:
        return None
    figures = json.loads(done.stdout)
    if commit() != measured:
        raise SystemExit(f"{row.shown}: the program changed from {measured} while it ran")
    if (where == "gpu") == (figures["device"] == "cpu"):
        raise SystemExit(f"{row.shown} ran on {figures['device']}, expected a {where}")
    return {
        "name": row.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": measured,
        "hardware": processor() if where == "cpu" else figures["device"],
        "jax": importlib.metadata.version("jax"),
        "command": row.shown,
        "figures": {name: value for name, value in figures.items() if name != "run_dir"},
    }


def commit() -> str:
    """Return the commit that is measured, with a + where the program differs from it."""
    git = partial(subprocess.run, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    head = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() or "unknown"
    differs = git(["git", "diff", "--quiet", "HEAD", "--", "gm_jax", "benchmarks/*.py"]).returncode
    return head + "+" * bool(differs)


def processor() -> str:
    """Return the name of the CPU, its family and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, value in (x.split(":", 1) for x in lines)}
    name = facts.get("model name", platform.processor())
    family = f", family {facts['cpu family']}" if "cpu family" in facts else ""
    return f"{name}{family}, {os.cpu_count()} cores"


def cells(record: dict[str, Any] | None) -> list[str]:
    """Return the cells of HEADINGS for a record."""
    if record is None:
        return ["not measured", *[""] * (len(HEADINGS) - 1)]
    figures = record["figures"]
    megabytes = figures.get("program_memory_bytes")
    if "wall_seconds" in figures:  # a training run
        wall = f"{figures['env_steps_per_second']:,.0f}, {figures['wall_seconds']:,.0f} s in all"
        found = [wall, "", "", f"{figures['compile_seconds']:.1f}", *[""] * 5]
    else:
        found = [
            spread(figures, "env_steps_per_second", ",.0f"),
            spread(figures, "model_flops_utilisation", ".2f"),
            spread(figures, "env_only_steps_per_second", ",.0f"),
            f"{figures['compile_seconds']:.1f}",
            f"{figures['warm_start_seconds']:.1f}",
            f"{megabytes / 2**20:,.0f}",
            spread(figures, "pytorch_env_steps_per_second", ",.0f"),
            spread(figures, "speedup_over_pytorch", ".2f"),
            latency(figures),
        ]
    stamp = f"{record['date']}, {record['commit']}, {record['hardware']}, jax {record['jax']}"
    return [*found, stamp]


def spread(figures: dict[str, Any], name: str, form: str) -> str:
    """Return a median with its least and most; nothing where it was not measured."""
    if name not in figures:
        return ""
    least, most = figures[f"{name}_spread"]
    return f"{figures[name]:{form}} ({least:{form}} to {most:{form}})"


def latency(figures: dict[str, Any]) -> str:
    """Return the median and the 99th percentile of a decision; nothing where it was not timed."""
    names = ("decision_p50_ms", "decision_p99_ms")
    return ", ".join(f"{figures[name]:.2f}" for name in names if name in figures)


def table(rows: list[Row], found: dict[str, dict[str, Any]]) -> str:
    """Return the newest record of every row as Markdown, and the commands below."""
    lines = [f"| row | {' | '.join(HEADINGS)} |", "|---" * (len(HEADINGS) + 1) + "|"]
    lines += [f"| {row.name} | {' | '.join(cells(found.get(row.name)))} |" for row in rows]
    commands = "\n".join(row.shown for row in rows)
    return "\n".join([*lines, "", "```sh", commands, "```"])


def replaced(text: str, name: str, content: str) -> str:
    """Return a page with something else between two markers."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def records() -> dict[str, dict[str, Any]]:
    """Return the newest record of every row that was measured, by its name."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def render() -> None:
    """Write the tables of the README from the records."""
    text = README.read_text(encoding="utf-8")
    for name, rows in TABLES.items():
        text = replaced(text, name, table(rows(), records()))
    README.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure what was asked for, one row after another; each is kept at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("where", choices=[*TABLES, "render"])
    parser.add_argument("--only", default="", metavar="WORD")
    arguments = parser.parse_args()
    rows = TABLES[arguments.where]() if arguments.where in TABLES else []
    failed = []
    for row in rows:
        if arguments.only not in row.name:
            continue
        print(row.shown, file=sys.stderr, flush=True)
        record = measure(row, arguments.where)
        if record is None:
            failed.append(row.name)
            continue
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    render()
    if failed:
        raise SystemExit(f"not measured, see above: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
