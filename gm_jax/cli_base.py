"""What the commands of `gm-jax` share: statuses, flags, printing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any


FINE, FAILURE, MISTAKE, INTERRUPTED = 0, 1, 2, 130

Result = tuple[int, dict[str, Any] | None]  # status, what --json prints

CSV_FLAGS = ("date_format", "tz", "repair", "around_the_clock")  # how a file is to be read


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """Add a command whose `run(arguments)` returns a `Result`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(run=run)
    return parser


def csv_flags(parser: argparse.ArgumentParser) -> None:
    """Add CSV_FLAGS."""
    parser.add_argument(
        "--date-format", help="day-first, month-first, year-first or a strptime pattern"
    )
    parser.add_argument("--tz", help="time zone of the time column")
    parser.add_argument("--repair", action="store_true", help="sort, drop conflicting duplicates")
    parser.add_argument(
        "--around-the-clock", action="store_true", help="a market without break and weekend"
    )


def csv_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return CSV_FLAGS as keyword arguments of `loader.load`."""
    return {name: getattr(arguments, name) for name in CSV_FLAGS}


def show(arguments: argparse.Namespace, lines: Iterable[str]) -> None:
    """Print for a person: on standard output, unless that is for JSON."""
    for line in lines:
        print(line, file=sys.stderr if arguments.json else sys.stdout)
