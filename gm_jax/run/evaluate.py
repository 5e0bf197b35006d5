"""Evaluate a finished or interrupted run on its own splits or on another file."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from gm_jax.deploy.ledger import header, row
from gm_jax.env import arrays
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.types import TrainState
from gm_jax.market.split import Split
from gm_jax.report.backtest import Ledger
from gm_jax.run import evaluation, mandate, record, results
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.oracles import fit_oracle
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup
from gm_jax.run.source import Source


def evaluate_run(
    path: Path,
    split: str | None = None,
    source: Source | None = None,
    ledger: Path | None = None,
) -> dict[str, Any]:
    """Return the report of a run's best networks on one split.

    Args:
        path: the run directory.
        split: train, validation, test (the default) or all; another file is used whole.
        source: another file instead of the run's own bars.
        ledger: CSV to write, a row per bar.

    Raises:
        UserError: no run, no checkpoint, unusable data.
    """
    _refuse(split, source, ledger)
    directory = RunDirectory.open(path)
    trained, own_source = record.reopen(directory)
    checkpoints = Checkpoints(directory.checkpoints)
    state = checkpoints.restore(trained)
    checkpoints.close()
    setup, split, seen, selected = trained, split or "test", False, False
    if source is None:
        seen, selected = split in ("train", "all"), split in ("validation", "all")
    else:
        source = dataclasses.replace(source, strategic=own_source.strategic)
        setup, split = elsewhere(trained, source), "all"
        seen, selected = (
            common_bars(setup, trained, trained.split[part]) > 0 for part in ("train", "validation")
        )
    for warning in setup.loaded.warnings:
        say(f"warning: {warning}")
    if seen:
        say("warning: the team was trained on bars among these: in-sample figures")
    report, team = _report(directory, setup, state, split, own=source is None)
    if ledger is not None:
        write_ledger(team, setup.system.agents, ledger)
        say(f"ledger of {len(team.time):,} bars written to {ledger}")
    return {
        "run_dir": str(path),
        "split": split,
        "in_sample": seen
        or mandate.seen(setup.loaded.strategic, setup.loaded.bars, setup.split[split]),
        "selected_on": selected,
        "source": dataclasses.asdict(source or own_source),
        "warnings": list(setup.loaded.warnings),
        **report,
    }


def _refuse(split: str | None, source: Source | None, ledger: Path | None) -> None:
    """Refuse what cannot be asked for together.

    Raises:
        UserError: a split of another file, or a ledger over the bars.
    """
    if source is not None and split not in (None, "all"):
        raise UserError(f"--split {split} belongs to the run's own data; --data is used whole.")
    read = Path(source.data) if source is not None and source.data else None
    if ledger is not None and read is not None and ledger.exists() and ledger.samefile(read):
        raise UserError(f"--ledger {ledger} is the file of bars itself; name another.")


def _report(
    directory: RunDirectory, setup: Setup, state: TrainState, split: str, own: bool
) -> tuple[dict[str, Any], Ledger]:
    """Return the report of a split and the team's ledger; `own` bars were counted as a trial."""
    oracle = fit_oracle(setup) if own else None
    report, ledgers = evaluation.evaluate(setup, learner.chosen(state), setup.split[split], oracle)
    team = ledgers["team"]
    if own:
        tried = results.known_trials(directory, setup)
    else:
        trained_on = directory.config()["data_sha256"]
        sharpes = {split: results.per_session(team)}
        tried = results.record_trial(directory, setup, sharpes, trained_on)
    return {
        **report,
        **evaluation.luck(team, tried, None if own and split not in results.REPORTED else split),
        "targets": evaluation.targets(setup, report, split, learner.chosen_at(state)),
        **{
            k: results.stored(directory, state, split, k) if own else None
            for k in ("pbo", "null_test")
        },
    }, team


def elsewhere(setup: Setup, source: Source) -> Setup:
    """Return the setup with other bars and the run's own scaler; every usable bar is in `all`."""
    settings = setup.settings.replace(market_parameters={})
    loaded = mandate.load_all(source, settings, setup.system.minutes)
    count = len(loaded.bars)
    if count <= setup.warmup + 1:
        raise UserError(
            f"{source.label} has {count} bars, expected more than the warm-up of {setup.warmup}."
        )
    usable = (setup.warmup, count)
    team = setup.system.team
    market = arrays.build_market(loaded.bars, settings, team, usable, 1, loaded.mandate)
    return dataclasses.replace(
        setup,
        loaded=loaded,
        split=Split(train=usable, validation=usable, test=usable),
        market=market.replace(
            mean=setup.market.mean, scale=setup.market.scale, law=setup.market.law
        ),
    )


def common_bars(setup: Setup, trained: Setup, span: tuple[int, int]) -> int:
    """Return how many bars of `setup` lie in a span of the other: same time and close."""
    first, end = span
    bars = trained.loaded.bars
    known = dict(zip(bars.time[first:end].tolist(), bars.close[first:end].tolist(), strict=True))
    found = zip(setup.loaded.bars.time.tolist(), setup.loaded.bars.close.tolist(), strict=True)
    return sum(known.get(time) == close for time, close in found)


def write_ledger(ledger: Ledger, agents: tuple[str, ...], path: Path) -> None:
    """Write a CSV row per bar: time, an action id per agent, target, position, equity in USD.

    A row holds the account at the bar's close and the decisions taken then.
    """
    part = path.with_suffix(path.suffix + ".part")
    columns = (ledger.time, ledger.actions, ledger.target, ledger.position, ledger.equity)
    try:
        with part.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header(agents))
            table.writerows(row(*values) for values in zip(*columns, strict=True))
        part.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write the ledger {path}: {error.strerror}.") from error
