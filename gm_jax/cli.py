"""The command line: `gm-jax`.

What needs JAX is imported by the command that needs it: help and typos answer at once.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gm_jax import cache, cli_data, cli_sweep, config
from gm_jax.cli_base import (
    CSV_FLAGS,
    FAILURE,
    FINE,
    INTERRUPTED,
    MISTAKE,
    Result,
    analyses,
    command,
    csv_flags,
    settings_flags,
    settings_of,
    show,
    source_of,
    system_named,
)
from gm_jax.errors import LostProcessError, NotFiniteError, UserError
from gm_jax.run.signals import handled, interrupt


if TYPE_CHECKING:
    from gm_jax.run.tracking import Wanted
    from gm_jax.run.training import Run
    from gm_jax.systems import System


# what imports allocate stays; looking through it again and again took a quarter of their time
GARBAGE = 100_000


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in two lines."""

    def error(self, message: str) -> NoReturn:
        print(f"gm-jax: {message}\nSee `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(MISTAKE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its status: 0 fine, 1 failed, 2 to be mended, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    cache.enable()
    try:
        with handled(interrupt, signal.SIGTERM):
            status, result = arguments.run(arguments)
    except UserError as error:
        print(f"gm-jax: {error}", file=sys.stderr)
        return MISTAKE
    except LostProcessError as error:
        print(f"gm-jax: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt as error:
        print(f"gm-jax: interrupted by {str(error) or signal.SIGINT.name}", file=sys.stderr)
        return INTERRUPTED
    if arguments.json and result is not None:
        from gm_jax.run.directory import to_json

        print(to_json(result))
    return int(status)


def console() -> NoReturn:
    """Run `main` as a program: the process is its own, and runs no code but the package's."""
    gc.set_threshold(GARBAGE)
    cache.keep_executables = True
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if status in (INTERRUPTED, FAILURE):
        # a device program may still run, and tearing Python down under it can crash; or JAX would
        # wait for a process that is gone
        os._exit(status)
    raise SystemExit(status)


def _train(arguments: argparse.Namespace) -> Result:
    from gm_jax.run import tracking

    system = system_named(arguments.system)
    wanted = tracking.Wanted(arguments.tensorboard, arguments.wandb)
    tracking.require(wanted)
    if (arguments.distributed, arguments.processes, arguments.process) != (None, None, None):
        return _together(arguments, system, wanted)
    return _train_alone(arguments, system, wanted)


def _train_alone(arguments: argparse.Namespace, system: System, wanted: Wanted) -> Result:
    from gm_jax.market.synthetic import describe
    from gm_jax.run import training
    from gm_jax.run.progress import say

    if arguments.resume:
        run = _resume(arguments, system, wanted)
    else:
        settings = settings_of(arguments, system)
        source = source_of(arguments, settings.seed)
        if not (arguments.data or arguments.market):
            say(
                "no --data: training on the generated market `planted`, an easy world with a "
                "known best policy"
            )
        if source.market:
            say(describe(source.market).splitlines()[0])
        run = training.start(system, settings, source, arguments.out, wanted)
    try:
        summary = training.train(run)
    except NotFiniteError as error:
        say(f"gm-jax: {error}")
        return FAILURE, None
    return INTERRUPTED if run.interrupted else FINE, summary


def _together(arguments: argparse.Namespace, system: System, wanted: Wanted) -> Result:
    """Join the other processes; help the leading one to the end, or be it."""
    named = (arguments.processes, arguments.process)
    if arguments.distributed is None:
        raise UserError("--processes and --process belong to --distributed HOST:PORT.")
    if [x is None for x in named] != [not arguments.distributed] * 2:
        raise UserError("--distributed HOST:PORT needs --processes N and --process I.")
    from gm_jax.run import cluster, launch

    cluster.join(arguments.distributed or None, *named)
    if cluster.follows():
        launch.follow()
        return FINE, None
    with cluster.leading():
        return _train_alone(arguments, system, wanted)


def _resume(arguments: argparse.Namespace, system: System, wanted: Wanted) -> Run:
    from gm_jax.run import training
    from gm_jax.run.checkpoint import CHANGEABLE

    changes = config.parse_assignments(arguments.set) | analyses(arguments)
    fixed = ("data", "market", "config", "seed", "out", "preset", "strategic", *CSV_FLAGS)
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(arguments, name)]
    given += [f"--set {key}" for key in changes if key not in CHANGEABLE]
    if given:
        raise UserError(
            f"--resume goes on with the run's own settings; {given[0]} cannot be changed "
            f"(only {', '.join(CHANGEABLE)} can, by --set)."
        )
    return training.resume(arguments.resume, system, changes, wanted)


def _evaluate(arguments: argparse.Namespace) -> Result:
    from gm_jax.run import evaluate, results

    source = source_of(arguments, seed=0)
    report = evaluate.evaluate_run(
        arguments.run_dir,
        split=arguments.split,
        source=source if arguments.data else None,
        ledger=arguments.ledger,
    )
    show(
        arguments,
        [
            f"{report['split']}: {results.headline(report)}",
            *results.table(report),
            *results.chance(report),
            *results.worth(report),
            *results.aims(report),
        ],
    )
    return FINE, report


def _export(arguments: argparse.Namespace) -> Result:
    from gm_jax.export import package

    result = package.export_run(
        arguments.run_dir,
        arguments.out,
        arguments.layout,
        onnx=arguments.onnx,
        safetensors=arguments.safetensors,
    )
    show(
        arguments, [f"{len(result['files'])} files, layout {result['layout']}: {result['package']}"]
    )
    return FINE, result


def _bench(arguments: argparse.Namespace) -> Result:
    from gm_jax.bench import measure

    if not arguments.seconds > 0:
        raise UserError(f"--seconds is {arguments.seconds}, expected a number above 0.")
    system = system_named(arguments.system)
    settings = settings_of(arguments, system)
    if arguments.num_envs is not None:
        settings = config.change(settings, {"num_envs": arguments.num_envs}, "--num-envs")
    result = measure.bench(
        system,
        settings,
        arguments.seconds,
        compare=arguments.compare,
        memory=arguments.memory,
        decision=arguments.decision,
    )
    show(arguments, measure.lines(result))
    return FINE, result


def _doctor(arguments: argparse.Namespace) -> Result:
    from gm_jax import doctor

    report = doctor.examine()
    show(arguments, doctor.lines(report))
    return FINE if report["ok"] else FAILURE, report


def _parser() -> _Parser:
    parser = _Parser(prog="gm-jax", description="Train teams of trading agents on futures bars.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = command(commands, "train", _train, "train a team, evaluate it, write a run directory")
    train.add_argument("system", metavar="SYSTEM")
    train.add_argument("--data", type=Path, metavar="CSV")
    train.add_argument("--market", help="generated market instead of a file")
    train.add_argument("--preset", choices=["quick", "default"], help="quick: minutes on a CPU")
    train.add_argument("--seed")
    train.add_argument("--out", type=Path, help="run directory to make")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run")
    train.add_argument(
        "--strategic",
        type=Path,
        metavar="RUN",
        help="a strategic run whose position bounds the tactical limit",
    )
    train.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="one of several processes; under Slurm without an address",
    )
    train.add_argument("--processes", type=int, metavar="N", help="of --distributed HOST:PORT")
    train.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")
    train.add_argument("--walk-forward", metavar="K", help="test on K folds, each after its past")
    train.add_argument("--null", metavar="N", help="train on N copies without direction as well")
    train.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard as well")
    train.add_argument(
        "--wandb", nargs="?", const="", metavar="PROJECT", help="log to Weights & Biases as well"
    )
    settings_flags(train)
    csv_flags(train)

    evaluate = command(commands, "evaluate", _evaluate, "greedy backtest of a run")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN")
    evaluate.add_argument("--data", type=Path, metavar="CSV", help="another file, used whole")
    evaluate.add_argument("--split", choices=["train", "validation", "test", "all"])
    evaluate.add_argument("--ledger", type=Path, metavar="FILE", help="write a row per bar")
    evaluate.set_defaults(market=None, strategic=None)
    csv_flags(evaluate)

    export = command(commands, "export", _export, "write the networks for PyTorch")
    export.add_argument("run_dir", type=Path, metavar="RUN")
    export.add_argument("--out", type=Path, metavar="DIR", help="by default the run directory")
    export.add_argument("--layout", choices=["gm", "grandmodel"], default="gm")
    export.add_argument("--onnx", action="store_true", help="ONNX files as well")
    export.add_argument("--safetensors", action="store_true", help="safetensors files as well")

    cli_sweep.add_command(commands)

    bench = command(commands, "bench", _bench, "measure speed against the machine's ceiling")
    bench.add_argument("system", metavar="SYSTEM")
    bench.add_argument("--num-envs", metavar="N")
    bench.add_argument("--seconds", type=float, default=30.0, metavar="S")
    bench.add_argument("--compare", action="store_true", help="with a PyTorch loop, in turn")
    bench.add_argument("--decision", action="store_true", help="time the exported model too")
    bench.add_argument("--memory", action="store_true", help="at N/4, N and 4 N environments too")
    bench.set_defaults(preset=None, seed=None, walk_forward=None, null=None)
    settings_flags(bench)

    cli_data.add_commands(commands)
    command(commands, "doctor", _doctor, "say what this machine offers and what is wrong with it")
    return parser
