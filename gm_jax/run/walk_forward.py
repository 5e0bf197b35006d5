"""Walk-forward: teams trained on expanding histories, each tested on what comes next.

All folds share one market; where a fold's windows may begin, its scaler and its law of stances are
fitted anew on its own training bars. The pieces that were out of sample join to one account.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env import arrays
from gm_jax.mappo.types import Networks
from gm_jax.mappo.validation import Segments
from gm_jax.market import split
from gm_jax.market.data_report import iso
from gm_jax.market.split import Split
from gm_jax.report.backtest import Ledger, backtest
from gm_jax.report.metrics import summarise
from gm_jax.run import baselines
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import account_report, comparison, team_policy
from gm_jax.run.members import train_members
from gm_jax.run.setup import MAX_SEGMENTS, Setup, hyper, static_config


NAME = "walk_forward"


def walk_forward(
    directory: RunDirectory, setup: Setup
) -> tuple[dict[str, Any], dict[str, Ledger], list[int]]:
    """Train and test every fold; return report, ledgers by name and starts of the tests (ns).

    Args:
        directory: of the run.
        setup: of the run; `walk_forward` in its settings is the number of folds.

    Raises:
        UserError: too few sessions for so many folds.
        StoppedEarlyError: a signal came; what was done is saved.
    """
    folds = fold_setups(setup)
    pieces: list[Ledger] = []
    numbers = range(len(folds))
    for trained in train_members(directory, NAME, numbers, folds.__getitem__):
        for member, fold in enumerate(trained.setups):
            networks = jax.tree.map(lambda x, m=member: x[m], trained.networks)
            pieces.append(_test(fold, networks, pieces[-1:]))
    spans = [fold.split.test for fold in folds]
    joined, whole = Ledger.join(pieces), (spans[0][0], spans[-1][1])
    ledgers = {"team": joined, **baselines.baselines(setup, joined, whole)}
    most = setup.settings.max_contracts
    report = {
        "folds": [
            {**_dates(fold), **summarise(piece, most)}
            for fold, piece in zip(folds, pieces, strict=True)
        ],
        **account_report(setup, joined, whole),
        **comparison(setup, ledgers),
    }
    return report, ledgers, [int(setup.loaded.bars.time[first]) for first, _ in spans]


def fold_setups(setup: Setup) -> list[Setup]:
    """Return the setup of each fold; shapes, settings and number of updates are the same."""
    bars, settings, system = setup.loaded.bars, setup.settings, setup.system
    parts = split.folds(bars, settings, setup.warmup, settings.walk_forward)
    episode, rollout = min(arrays.window_length(bars, part.train, settings) for part in parts)
    fitted = settings.replace(episode_length=episode, rollout_length=rollout)
    shared = dataclasses.replace(
        setup,
        episode_length=episode,
        params=arrays.env_params(settings, episode),
        config=static_config(system, fitted),
        hyper=hyper(settings, episode // rollout),
    )
    measured = arrays.measure(bars, settings, system.team)

    def fold(part: Split) -> Setup:
        own = arrays.fit(measured, bars, system.team, part.train, episode)
        return dataclasses.replace(
            shared,
            split=part,
            market=setup.market.replace(**own),
            segments=_segments(setup, part),
        )

    return [fold(part) for part in parts]


def _segments(setup: Setup, part: Split) -> Segments:
    """Return the validation segments of a fold, filled up to one number by ones without steps."""
    first, steps = split.segments(setup.loaded.bars, part.validation, MAX_SEGMENTS)
    missing = MAX_SEGMENTS - len(first)
    return Segments(
        jnp.asarray(np.pad(first, (0, missing), mode="edge")),
        jnp.asarray(np.pad(steps, (0, missing))),
    )


def _test(fold: Setup, networks: Networks, before: list[Ledger]) -> Ledger:
    """Run a fold's team through its test piece, with the equity that the last piece left."""
    params = fold.params
    if before:
        params = params.replace(start_equity=jnp.int32(before[0].final_equity))
    return backtest(
        team_policy(fold.config),
        networks.actor,
        fold.loaded.bars,
        fold.split.test,
        fold.market,
        params,
        fold.system.team,
    )


def _dates(fold: Setup) -> dict[str, Any]:
    time = fold.loaded.bars.time
    return {
        name: [iso(int(time[first])), iso(int(time[end - 1]))]
        for name, (first, end) in (
            (name, fold.split[name]) for name in ("train", "validation", "test")
        )
    }
