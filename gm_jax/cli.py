"""The command line: `gm-jax`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gm_jax import config
from gm_jax.config import Settings
from gm_jax.errors import UserError
from gm_jax.systems import SYSTEMS, System


MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in two lines."""

    def error(self, message: str) -> NoReturn:
        print(f"gm-jax: {message}\nSee `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(MISTAKE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 fine, 2 the user's mistake, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        result = arguments.run(arguments)
    except UserError as error:
        print(f"gm-jax: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    status = int(result.pop("exit_status", 0))
    if arguments.json:
        from gm_jax.run.directory import to_json

        print(to_json(result))
    return status


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    from gm_jax.run import training
    from gm_jax.run.progress import say

    system = _system(arguments.system)
    if arguments.resume:
        run = _resume(arguments, system)
    else:
        settings = _settings(arguments, system)
        source = _source(arguments, settings)
        if not (arguments.data or arguments.market):
            say(
                "no --data: training on the generated market `planted`, an easy world with a "
                "known best policy"
            )
        run = training.start(system, settings, source, arguments.out)
    try:
        summary = training.train(run)
    except training.NotFiniteError as error:
        say(f"gm-jax: {error}")
        return {"exit_status": FAILURE}
    return summary | {"exit_status": INTERRUPTED if run.interrupted else 0}


def _resume(arguments: argparse.Namespace, system: System) -> Any:
    from gm_jax.run import training

    changes = config.parse_assignments(arguments.set)
    fixed = {
        "--data": arguments.data,
        "--market": arguments.market,
        "--config": arguments.config,
        "--seed": arguments.seed,
        "--out": arguments.out,
        "--preset": arguments.preset,
    }
    given = [flag for flag, value in fixed.items() if value is not None]
    given += [f"--set {key}" for key in changes if key != "num_episodes"]
    if given:
        raise UserError(
            f"--resume goes on with the run's own settings; {given[0]} cannot be changed "
            "(only --set num_episodes=N can)."
        )
    episodes = config.change(system.settings, changes, "--set").num_episodes if changes else None
    run = training.resume(arguments.resume, episodes)
    if run.setup.system is not system:
        raise UserError(
            f"{arguments.resume} is a {run.setup.system.name} run: "
            f"gm-jax train {run.setup.system.name} --resume {arguments.resume}"
        )
    return run


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from gm_jax.run import evaluate

    return evaluate.evaluate_run(
        arguments.run_dir,
        split=arguments.split,
        source=_source(arguments, None) if arguments.data else None,
        ledger=arguments.ledger,
    )


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    from gm_jax import bench
    from gm_jax.run.progress import say

    system = _system(arguments.system)
    settings = _settings(arguments, system)
    if arguments.num_envs is not None:
        settings = config.change(settings, {"num_envs": arguments.num_envs}, "--num-envs")
    result = bench.bench(system, settings, arguments.seconds)
    for name, value in result.items():
        say(f"{name:<34}{value:,.3g}" if isinstance(value, float) else f"{name:<34}{value}")
    return result


def _data_check(arguments: argparse.Namespace) -> dict[str, Any]:
    from gm_jax.market import loader
    from gm_jax.run.progress import say

    _, report = loader.load(
        _existing(arguments.csv),
        None,
        date_format=arguments.date_format,
        tz=arguments.tz,
        repair=arguments.repair,
    )
    result = report.to_json()
    for name, value in result.items():
        for line in value if isinstance(value, list) else [value]:
            say(f"{name:<16}{line}")
    return dict(result)


def _data_synth(arguments: argparse.Namespace) -> dict[str, Any]:
    from gm_jax.market import synthetic, writing
    from gm_jax.run.progress import say

    parameters = {
        key: config.number(key, value)
        for key, value in config.parse_assignments(arguments.set).items()
    }
    world = synthetic.generate(
        arguments.market,
        bars=arguments.bars,
        minutes=arguments.minutes,
        seed=arguments.seed,
        **parameters,
    )
    writing.write_csv(world.bars, arguments.out)
    say(f"{len(world.bars):,} bars of `{arguments.market}` written to {arguments.out}")
    return {"out": str(arguments.out), "bars": len(world.bars), "parameters": world.parameters}


def _system(name: str) -> System:
    return SYSTEMS[name]


def _settings(arguments: argparse.Namespace, system: System) -> Settings:
    """Merge defaults, preset, file, --set and --seed, later ones winning."""
    settings = system.settings
    if getattr(arguments, "preset", None) == "quick":
        settings = settings.replace(**config.QUICK)
    if arguments.config:
        settings = config.read_config(arguments.config, system.name, settings)
    settings = config.change(settings, config.parse_assignments(arguments.set), "--set")
    if getattr(arguments, "seed", None) is not None:
        settings = config.change(settings, {"seed": arguments.seed}, "--seed")
    return settings


def _source(arguments: argparse.Namespace, settings: Settings | None) -> Any:
    from gm_jax.run.source import Source

    if arguments.data:
        if getattr(arguments, "market", None):
            raise UserError("--data and --market exclude each other; give one of them.")
        return Source(
            data=str(_existing(arguments.data)),
            date_format=arguments.date_format,
            tz=arguments.tz,
            repair=arguments.repair,
        )
    return Source(market=arguments.market or "planted", seed=settings.seed if settings else 0)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"No file {path}; expected a CSV with Date, Open, High, Low, Close, Volume."
        )
    return path


def _parser() -> _Parser:
    parser = _Parser(prog="gm-jax", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    systems = sorted(SYSTEMS)

    train = _command(commands, "train", _train, "train a team, evaluate it, write a run directory")
    train.add_argument("system", choices=systems)
    train.add_argument("--market", help="generated market instead of a file")
    train.add_argument("--preset", choices=["quick", "default"], help="quick: minutes on a CPU")
    train.add_argument("--seed", type=int)
    train.add_argument("--out", type=Path, help="run directory to make")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run")
    train.add_argument("--data", type=Path, metavar="CSV")
    _settings_flags(train)
    _csv_flags(train)

    evaluate = _command(commands, "evaluate", _evaluate, "greedy backtest of a run")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN")
    evaluate.add_argument("--data", type=Path, metavar="CSV", help="another file, used whole")
    evaluate.add_argument("--split", choices=["train", "validation", "test", "all"])
    evaluate.add_argument("--ledger", type=Path, metavar="FILE", help="write a row per bar")
    _csv_flags(evaluate)

    bench = _command(commands, "bench", _bench, "measure speed against the machine's ceiling")
    bench.add_argument("system", choices=systems)
    bench.add_argument("--num-envs", type=int)
    bench.add_argument("--seconds", type=float, default=30.0)
    _settings_flags(bench)

    data = commands.add_parser("data", help="data tools").add_subparsers(
        required=True, metavar="TOOL"
    )
    check = _command(data, "check", _data_check, "say what a file holds")
    check.add_argument("csv", type=Path, metavar="CSV")
    _csv_flags(check)
    synth = _command(data, "synth", _data_synth, "write a generated market as CSV")
    synth.add_argument("--market", required=True)
    synth.add_argument("--bars", type=int, required=True)
    synth.add_argument("--minutes", type=int, choices=[5, 30], required=True)
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--out", type=Path, required=True, metavar="CSV")
    synth.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(run=run)
    return parser


def _settings_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")


def _csv_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--date-format", help="strptime format of the time column")
    parser.add_argument("--tz", help="time zone of the time column")
    parser.add_argument("--repair", action="store_true", help="sort, drop conflicting duplicates")
