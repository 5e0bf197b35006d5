"""Evaluate a finished or interrupted run on its own splits or on another file."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gm_jax.env import arrays
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.report.backtest import Ledger
from gm_jax.run import evaluation, record, results
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup
from gm_jax.run.source import Source, load


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
    directory = RunDirectory.open(path)
    setup, _ = record.reopen(directory)
    like = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    checkpoints = Checkpoints(directory.checkpoints)
    state = checkpoints.restore(like)
    checkpoints.close()
    oracle = evaluation.fit_oracle(setup)
    if source is not None:
        if split not in (None, "all"):
            raise UserError(f"--split {split} belongs to the run's own data; --data is used whole.")
        setup, split, oracle = elsewhere(setup, source), "all", None
    split = split or "test"
    span = setup.split[split]
    report, ledgers = evaluation.evaluate(setup, results.chosen(state), span, oracle)
    if ledger is not None:
        write_ledger(ledgers["team"], setup.system.agents, ledger)
        say(f"ledger of {len(ledgers['team'].time):,} bars written to {ledger}")
    in_sample = source is None and split in ("train", "all")
    for name, value in report.items():
        if not isinstance(value, dict):
            say(f"{name:<24}{value}")
    return {
        "run_dir": str(path),
        "split": split,
        "in_sample": in_sample,
        "data": (source.data if source else None) or directory.config()["source"],
        **report,
    }


def elsewhere(setup: Setup, source: Source) -> Setup:
    """Return the setup with other bars and the run's own scaler; every usable bar is in `all`."""
    loaded = load(source, setup.settings, setup.system.minutes)
    count = len(loaded.bars)
    if count <= setup.warmup + 1:
        raise UserError(
            f"{source.label} has {count} bars, expected more than the warm-up of {setup.warmup}."
        )
    contract = setup.settings.max_contracts * arrays.tick_cents(setup.settings)
    usable = (setup.warmup, count)
    market = arrays.build_market(loaded.bars, setup.settings.features, usable, 1, contract)
    return dataclasses.replace(
        setup,
        loaded=loaded,
        split=dataclasses.replace(setup.split, train=usable, test=usable),
        market=market.replace(mean=setup.market.mean, scale=setup.market.scale),
    )


def write_ledger(ledger: Ledger, agents: tuple[str, ...], path: Path) -> None:
    """Write a CSV row per bar: time, an action id per agent, target, position, equity in USD.

    A row holds the account at the bar's close and the decisions taken then.
    """
    times = np.datetime_as_string(ledger.time.astype("datetime64[ns]"), unit="s")
    part = path.with_suffix(path.suffix + ".part")
    try:
        with part.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["time", *agents, "target_position", "position", "equity"])
            for row in zip(
                times, ledger.actions, ledger.target, ledger.position, ledger.equity, strict=True
            ):
                time, actions, target, position, equity = row
                table.writerow([f"{time}Z", *actions, target, position, f"{equity / 100:.2f}"])
        part.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write the ledger {path}: {error.strerror}.") from error
