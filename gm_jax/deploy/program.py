"""`python deploy_model.py --data CSV [--out FILE] [--follow]`: the team over a file of bars."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gm_jax.deploy import ledger
from gm_jax.deploy.package import CONFIG, agents
from gm_jax.deploy.trading_env import MOST_OVERDUE, Desk
from gm_jax.errors import UserError
from gm_jax.market import loader
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE, overdue
from gm_jax.market.data_report import iso


POLL = 1.0  # seconds between two looks at a file that grows


def main(argv: Sequence[str] | None = None, home: Path | None = None) -> int:
    """Run the program; return its status: 0 fine, 2 the user's mistake, 130 interrupted.

    Args:
        argv: arguments, those of the process by default.
        home: folder of the package, by default that of the program.
    """
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments, home or Path(sys.argv[0]).resolve().parent)
    except UserError as error:
        print(f"deploy_model: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy_model.py", description="Run the trained team over a file of bars."
    )
    parser.add_argument("--data", required=True, type=Path, metavar="CSV")
    parser.add_argument("--out", type=Path, metavar="FILE", help="ledger, a row per bar")
    parser.add_argument("--follow", action="store_true", help="go on as the file grows")
    parser.add_argument("--model", type=Path, metavar="PTH", help="by default the best one here")
    parser.add_argument("--date-format", metavar="FORMAT")
    parser.add_argument("--tz", metavar="ZONE", help="zone of the stamps")
    parser.add_argument("--repair", action="store_true", help="mend repeated rows and order")
    parser.add_argument("--around-the-clock", action="store_true", help="a market without a break")
    return parser


def _run(arguments: argparse.Namespace, home: Path) -> None:
    model = arguments.model or _best(home)
    desk = Desk.open(model, _system(model))
    if desk.mandated:
        raise UserError(
            "This tactical team was trained under a strategic one and cannot decide from its own "
            "bars alone: use TradingEnvironment with both teams."
        )
    if arguments.out and arguments.out.exists() and arguments.out.samefile(arguments.data):
        raise UserError(f"--out {arguments.out} is the file of bars itself; name another.")
    with ExitStack() as stack:
        try:
            file = (
                stack.enter_context(arguments.out.open("w", newline="")) if arguments.out else None
            )
        except OSError as error:
            raise UserError(f"Cannot write {arguments.out}: {error.strerror}.") from error
        table = csv.writer(file or sys.stdout)
        table.writerow(ledger.header(agents(desk.package.config)))
        for bars in _pieces(arguments, desk):
            made = desk.step(bars)
            table.writerows(
                ledger.row(d.time, d.actions, d.target, d.position, d.equity) for d in made
            )
            (file or sys.stdout).flush()
            _tell(desk, len(made))
    if desk.decision is None:
        raise UserError(
            f"{arguments.data} has {desk.feed.bars_seen:,} bars, expected more than the warm-up of "
            f"{desk.feed.warmup:,}."
        )


def _best(home: Path) -> Path:
    found = sorted(home.glob("best_*_model.pth"))
    if len(found) != 1:
        raise UserError(f"{home} holds {len(found)} models best_*_model.pth; name one by --model.")
    return found[0]


def _system(model: Path) -> str:
    path = model.parent / CONFIG
    try:
        return str(json.loads(path.read_text())["system"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the whole package.") from error


def _pieces(arguments: argparse.Namespace, desk: Desk) -> Iterator[Bars]:
    """Yield the bars of the file and, if it is followed, those that come."""
    bars = _load(arguments, desk, live=0)
    yield bars
    if not arguments.follow:
        return
    size, told = arguments.data.stat().st_size, None
    while True:
        time.sleep(POLL)
        last = int(bars.time[-1])
        if arguments.data.stat().st_size != size and _whole(arguments.data):
            size = arguments.data.stat().st_size
            bars = _load(arguments, desk, live=desk.feed.warmup + 1)
            new = bars[int(np.searchsorted(bars.time, last, side="right")) :]
            if len(new):
                yield new
        late = overdue(int(bars.time[-1]), bars.minutes, time.time_ns())
        if late > MOST_OVERDUE and told != last:
            told = last
            print(
                f"no decision: the last closed bar is of {iso(last)}, {late} bars are overdue",
                file=sys.stderr,
            )


def _whole(path: Path) -> bool:
    """Return whether the last line of a file is not half-written."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _load(arguments: argparse.Namespace, desk: Desk, live: int) -> Bars:
    config = desk.package.config
    bars, report = loader.load(
        arguments.data,
        config["bar_minutes"],
        date_format=arguments.date_format,
        tz=arguments.tz,
        repair=arguments.repair,
        around_the_clock=arguments.around_the_clock,
        tick=config["settings"]["tick_points"],
        live=live,
    )
    if not live:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        return bars
    closes = bars.time + bars.minutes * MINUTE
    return bars[: int(np.searchsorted(closes, time.time_ns(), side="right"))]


def _tell(desk: Desk, made: int) -> None:
    """Say how long decisions took, on stderr."""
    if not made:
        return
    milliseconds: Any = np.percentile(np.array(desk.latency[-made:]) * 1e3, (50, 99))
    print(
        f"{made:,} decisions, p50 {milliseconds[0]:.3f} ms, p99 {milliseconds[1]:.3f} ms",
        file=sys.stderr,
    )
