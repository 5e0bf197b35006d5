"""The command `gm-jax sweep`: settings × seeds, a ranking, the best run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_jax.cli_base import (
    CSV_FLAGS,
    FAILURE,
    FINE,
    INTERRUPTED,
    Result,
    command,
    csv_flags,
    settings_flags,
    settings_of,
    show,
    source_of,
    system_named,
)
from gm_jax.errors import NotFiniteError, UserError


if TYPE_CHECKING:
    from gm_jax.run.sweep import Sweep

# what a sweep that is resumed has already
_FIXED = ("grid", "seeds", "data", "market", "strategic", "preset", "config", "set", "seed", "out")


def add_command(commands: Any) -> None:
    """Add `sweep`."""
    text = "train settings × seeds side by side and rank them on validation"
    sweep = command(commands, "sweep", _sweep, text)
    sweep.add_argument("system", metavar="SYSTEM")
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=A,B,…",
        help="values of a setting, every combination is trained; a list is written [64,64]",
    )
    sweep.add_argument("--seeds", type=int, metavar="K", help="seeds of each setting, 1 by default")
    sweep.add_argument("--seed", help="the first of them, and that of a generated market")
    sweep.add_argument("--data", type=Path, metavar="CSV")
    sweep.add_argument("--market", help="generated market instead of a file")
    sweep.add_argument("--strategic", type=Path, metavar="RUN", help="as of `train`")
    sweep.add_argument("--preset", choices=["quick", "default"], help="quick: minutes on a CPU")
    settings_flags(sweep)
    sweep.add_argument("--out", type=Path, metavar="DIR", help="sweep directory to make")
    sweep.add_argument("--resume", type=Path, metavar="SWEEP", help="go on with a sweep")
    sweep.set_defaults(walk_forward=None, null=None)
    csv_flags(sweep)


def _sweep(arguments: argparse.Namespace) -> Result:
    from gm_jax.run import sweep, sweep_report

    if arguments.resume:
        _refuse_changes(arguments)
        found = sweep.resume(arguments.resume, system_named(arguments.system))
    else:
        found = _start(arguments)
    try:
        summary = sweep.run(found)
    except NotFiniteError as error:
        from gm_jax.run.progress import say

        say(f"gm-jax: {error}")
        return FAILURE, None
    if found.interrupted:
        return INTERRUPTED, summary
    if not arguments.json:
        show(arguments, [*sweep_report.lines(summary), f"sweep directory {summary['sweep_dir']}"])
    return FINE, summary


def _start(arguments: argparse.Namespace) -> Sweep:
    from gm_jax.run import sweep, sweep_plan

    of = system_named(arguments.system)
    base = settings_of(arguments, of)
    grid = sweep_plan.parse_grid(arguments.grid)
    twice = {text.partition("=")[0].strip() for text in arguments.set} & {*grid}
    if twice:
        raise UserError(f"`{min(twice)}` is given by --set and by --grid; give it once.")
    seeds = 1 if arguments.seeds is None else arguments.seeds
    plan = sweep_plan.Plan(of, base, grid, seeds, source_of(arguments, base.seed))
    return sweep.start(plan, arguments.out)


def _refuse_changes(arguments: argparse.Namespace) -> None:
    """Refuse what would change a sweep that is under way."""
    for name in (*_FIXED, *CSV_FLAGS):
        if getattr(arguments, name) not in (None, [], False):
            flag = name.replace("_", "-")
            raise UserError(
                f"--resume goes on with what the sweep was asked for; --{flag} cannot be changed."
            )
