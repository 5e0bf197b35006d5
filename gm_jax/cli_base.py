"""What the commands of `gm-jax` share: statuses, flags, what flags stand for, printing."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_jax import config
from gm_jax.errors import UserError
from gm_jax.market.files import existing
from gm_jax.settings import Settings


if TYPE_CHECKING:
    from gm_jax.run.source import Source
    from gm_jax.systems import System


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


def settings_flags(parser: argparse.ArgumentParser) -> None:
    """Add what `settings_of` reads beside preset and seed."""
    parser.add_argument("--config", type=Path, metavar="YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")


def system_named(name: str) -> System:
    """Return a system by its name."""
    from gm_jax.systems import SYSTEMS

    if name not in SYSTEMS:
        near = difflib.get_close_matches(name, SYSTEMS, n=1)
        hint = f", did you mean {near[0]}" if near else ""
        raise UserError(f"No system {name!r}{hint}. Known: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def settings_of(arguments: argparse.Namespace, system: System) -> Settings:
    """Merge defaults, preset, file, --set and --seed, later ones winning."""
    layers: list[config.Layer] = []
    if arguments.preset == "quick":
        layers.append((system.quick, "--preset quick"))
    if arguments.config:
        layers.append(config.read_section(arguments.config, system.name))
    layers.append((config.parse_assignments(arguments.set), "--set"))
    layers.append((analyses(arguments), "--walk-forward, --null"))
    if arguments.seed is not None:
        layers.append(({"seed": arguments.seed}, "--seed"))
    return config.merge(system.settings, layers)


def analyses(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings that stand for flags of their own."""
    flags = {"walk_forward": arguments.walk_forward, "null_copies": arguments.null}
    return {key: value for key, value in flags.items() if value is not None}


def source_of(arguments: argparse.Namespace, seed: int) -> Source:
    """Return where the bars are from: a file or a generated market."""
    from gm_jax.run.source import Source

    strategic = str(arguments.strategic) if arguments.strategic else None
    if strategic and arguments.system != "tactical":
        raise UserError("--strategic bounds a tactical team: it belongs to `train tactical`.")
    if not arguments.data:
        _no_file(arguments)
        return Source(market=arguments.market or "planted", seed=seed, strategic=strategic)
    if arguments.market:
        raise UserError("--data and --market exclude each other; give one of them.")
    file = str(existing(arguments.data))
    return Source(data=file, strategic=strategic, **csv_options(arguments))


def _no_file(arguments: argparse.Namespace) -> None:
    """Refuse flags that describe a file where none is given."""
    for name in CSV_FLAGS:
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} describes a file; give one with --data.")
