"""`python deploy_model.py --data CSV [--out FILE] [--follow]`: the team over a file of bars."""

from __future__ import annotations

import argparse
import csv
import json
import math
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
from gm_jax.deploy.trading_env import Desk, closed_by, following, why_not_live
from gm_jax.errors import UserError
from gm_jax.market import loader
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE
from gm_jax.market.files import existing


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
    _require_readable(arguments.data)
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


def _require_readable(path: Path) -> None:
    try:
        existing(path).open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


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
    """Yield the bars of the file and, if it is followed, those that come, once they may be used.

    Of what is there at the start the last bar alone is held to the live rules, all else is past.
    Bars that are late or stand behind a hole are held back with a word; when newer ones are in
    time and whole, the paper account goes through all of them.
    """
    if not arguments.follow:
        yield _load(arguments, desk)
        return
    told = None
    for bars in _versions(arguments, desk):
        begun = desk.feed.last is not None
        new, last = following(desk, bars) if begun else bars, bars.time[-1:].tolist()
        if reason := why_not_live(desk, bars, time.time_ns()):
            if last != told:
                print(f"no decision: {reason}", file=sys.stderr)
            told, new = last, new[: 0 if begun else -1]
        if len(new):
            yield new


def _versions(arguments: argparse.Namespace, desk: Desk) -> Iterator[Bars]:
    """Yield the closed bars of a file at every look, read anew where it has changed.

    It is read when it ends in a whole line and is as at the look before: nobody is writing it. A
    bar that was still open is read again when it has closed.
    """
    before, read, bars, due = _look(arguments.data), None, None, math.inf
    if before is None:
        print(f"waiting: the last line of {arguments.data} has no end", file=sys.stderr)
    while True:
        time.sleep(POLL)
        look, now = _look(arguments.data), time.time_ns()
        if look and look == before and (look != read or now >= due):
            whole, read = _load(arguments, desk), look
            bars = closed_by(whole, now)
            still_open = whole.time[len(bars) :]
            due = int(still_open[0]) + whole.minutes * MINUTE if len(still_open) else math.inf
        before = look
        if bars is not None:
            yield bars


def _look(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None while it is being replaced or a line written."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            return (size, path.stat().st_mtime_ns) if file.read() == b"\n" else None
    except OSError:
        return None


def _load(arguments: argparse.Namespace, desk: Desk) -> Bars:
    """Return the bars of the file; of one that is followed the newest too, be they few or bad."""
    config = desk.package.config
    bars, report = loader.load(
        arguments.data,
        config["bar_minutes"],
        date_format=arguments.date_format,
        tz=arguments.tz,
        repair=arguments.repair,
        around_the_clock=arguments.around_the_clock or desk.around_the_clock,
        tick=config["settings"]["tick_points"],
        live=desk.feed.warmup + 1 if arguments.follow else 0,
    )
    if desk.feed.last is None:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return bars


def _tell(desk: Desk, made: int) -> None:
    """Say how long decisions took, on stderr."""
    if not made:
        return
    milliseconds: Any = np.percentile(np.array(desk.latency[-made:]) * 1e3, (50, 99))
    print(
        f"{made:,} decisions, p50 {milliseconds[0]:.3f} ms, p99 {milliseconds[1]:.3f} ms",
        file=sys.stderr,
    )
