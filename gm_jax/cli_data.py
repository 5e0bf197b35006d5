"""The commands `gm-jax data …`: check a file, resample one, write a generated one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gm_jax import config
from gm_jax.cli_base import FINE, Result, command, csv_flags, csv_options, show
from gm_jax.errors import UserError


def add_commands(commands: Any) -> None:
    """Add `data` with its tools."""
    data = commands.add_parser("data", help="data tools").add_subparsers(
        required=True, metavar="TOOL"
    )
    check = command(data, "check", _check, "say what a file holds")
    check.add_argument("csv", type=Path, metavar="CSV")
    csv_flags(check)

    resample = command(data, "resample", _resample, "make longer bars of shorter ones")
    resample.add_argument("csv", type=Path, metavar="CSV")
    resample.add_argument("--minutes", type=int, required=True, metavar="M")
    resample.add_argument("--out", type=Path, required=True, metavar="CSV")
    csv_flags(resample)

    synth = command(data, "synth", _synth, "write a generated market as CSV")
    synth.add_argument("--market", required=True)
    synth.add_argument("--bars", type=int, required=True, metavar="N")
    synth.add_argument("--minutes", type=int, choices=[5, 30], required=True)
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--out", type=Path, required=True, metavar="CSV")
    synth.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")


def _check(arguments: argparse.Namespace) -> Result:
    from gm_jax.market import loader

    _, report = loader.load(arguments.csv, None, **csv_options(arguments))
    result = dict(report.to_json())
    rows = ((k, v if isinstance(v, list) else [v]) for k, v in result.items())
    show(arguments, (f"{name:<16}{value}" for name, values in rows for value in values))
    return FINE, result


def _resample(arguments: argparse.Namespace) -> Result:
    from gm_jax.market import files, loader, resampling, writing

    if arguments.out.exists() and arguments.out.samefile(files.existing(arguments.csv)):
        raise UserError(f"--out {arguments.out} is the file to read; name another.")
    bars, report = loader.load(arguments.csv, None, **csv_options(arguments))
    longer, inexact = resampling.resample(bars, arguments.minutes)
    writing.write_csv(longer, arguments.out)
    warnings = [*report.warnings, *inexact.warnings]
    made = f"{len(longer):,} bars of {longer.minutes} minutes in {arguments.out}, made of "
    made += f"{len(bars):,} of {bars.minutes}"
    show(arguments, [made, *(f"warning: {warning}" for warning in warnings)])
    return FINE, {
        "out": str(arguments.out),
        "bars": len(longer),
        "bar_minutes": longer.minutes,
        "source_bars": len(bars),
        "source_minutes": bars.minutes,
        "partial_bars": inexact.partial,
        "bars_past_roll": inexact.past_roll,
        "rolls_changed": inexact.rolls,
        "warnings": warnings,
    }


def _synth(arguments: argparse.Namespace) -> Result:
    from gm_jax.market import synthetic, writing

    sets = config.parse_assignments(arguments.set)
    world = synthetic.generate(
        arguments.market,
        bars=arguments.bars,
        minutes=arguments.minutes,
        seed=arguments.seed,
        parameters={k.removeprefix("market."): config.number(k, v) for k, v in sets.items()},
    )
    writing.write_csv(world.bars, arguments.out)
    made = f"{len(world.bars):,} bars of `{arguments.market}` in {arguments.out}"
    show(arguments, [made, synthetic.describe(arguments.market)])
    return FINE, {
        "out": str(arguments.out),
        "bars": len(world.bars),
        "parameters": world.parameters,
    }
