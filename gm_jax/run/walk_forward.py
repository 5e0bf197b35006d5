"""Walk-forward: teams trained on expanding histories, each tested on what comes next.

All folds share one market; where a fold's windows may begin, its scaler and its law of stances are
fitted anew on its own training bars. The pieces that were out of sample join to one account: each
begins flat with the equity that the last one left, and its limits count from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env import arrays, units
from gm_jax.mappo.types import Networks
from gm_jax.mappo.validation import Segments
from gm_jax.market import split
from gm_jax.market.data_report import iso
from gm_jax.market.split import Split
from gm_jax.report.backtest import Ledger
from gm_jax.report.metrics import summarise
from gm_jax.run import mandate
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import account_report, comparison, rivals, targets, team_ledger
from gm_jax.run.members import train_members
from gm_jax.run.oracles import fit_oracle
from gm_jax.run.setup import MAX_SEGMENTS, Setup, fold_parts, hyper, static_config


NAME = "walk_forward"


def walk_forward(
    directory: RunDirectory, setup: Setup
) -> tuple[dict[str, Any], dict[str, Ledger], list[int]]:
    """Train and test every fold; return report, ledgers by name and starts of the tests (ns).

    Each fold's team is a new one, with drawdown and ruin limits of its own; a baseline or the
    oracle, fitted on the first fold's training, is one account throughout. The states of the folds
    are kept until `members.forget`.

    Args:
        directory: of the run.
        setup: of the run; `walk_forward` in its settings is the number of folds.

    Raises:
        UserError: too few sessions for so many folds.
        StoppedEarlyError: a signal came; what was done is saved.
    """
    folds = fold_setups(setup)
    pieces: list[Ledger] = []
    equity = int(setup.params.start_equity)
    for trained in train_members(directory, NAME, range(len(folds)), folds.__getitem__):
        for member, fold in enumerate(trained.setups):
            networks = jax.tree.map(lambda x, m=member: x[m], trained.networks)
            pieces.append(_test(fold, networks, equity))
            equity = pieces[-1].final_equity
    spans = [fold.split.test for fold in folds]
    joined, whole = Ledger.join(pieces), (spans[0][0], spans[-1][1])
    ledgers = {"team": joined, **rivals(setup, joined, whole, fit_oracle(folds[0]))}
    report = _report(setup, folds, pieces, ledgers)
    return report, ledgers, [int(setup.loaded.bars.time[first]) for first, _ in spans]


def _report(
    setup: Setup, folds: Sequence[Setup], pieces: Sequence[Ledger], ledgers: dict[str, Ledger]
) -> dict[str, Any]:
    """Return what each fold came to, and all of them as one account beside its rivals."""
    settings, bars, strategic = setup.settings, setup.loaded.bars, setup.loaded.strategic
    whole = (folds[0].split.test[0], folds[-1].split.test[1])
    report = {
        "folds": [
            {
                **_dates(fold),
                **summarise(piece, settings.max_contracts),
                "in_sample": mandate.seen(strategic, bars, fold.split.test),
            }
            for fold, piece in zip(folds, pieces, strict=True)
        ],
        "in_sample": mandate.seen(strategic, bars, whole),
        **account_report(setup, ledgers["team"], whole),
        **comparison(setup, ledgers),
    }
    # no fold trains longer than that, whichever of its networks validation chose
    return report | {"targets": targets(setup, report, NAME, settings.num_episodes)}


def fold_setups(setup: Setup) -> list[Setup]:
    """Return the setup of each fold; shapes, settings and number of updates are the same."""
    bars, team = setup.loaded.bars, setup.system.team
    parts, fitted = fold_parts(bars, setup.settings, setup.warmup)
    episode = fitted.episode_length
    shared = dataclasses.replace(
        setup,
        episode_length=episode,
        params=units.env_params(fitted, episode),
        config=static_config(setup.system, fitted),
        hyper=hyper(fitted, episode // fitted.rollout_length),
    )
    measured = arrays.measure(bars, fitted, team)

    def fold(part: Split) -> Setup:
        own = arrays.fit(measured, bars, team, part.train, episode)
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


def _test(fold: Setup, networks: Networks, equity: int) -> Ledger:
    """Run a fold's team through its test piece, with so much equity at its start, cents."""
    params = fold.params.replace(start_equity=jnp.int32(equity))
    return team_ledger(dataclasses.replace(fold, params=params), networks, fold.split.test)


def _dates(fold: Setup) -> dict[str, Any]:
    time = fold.loaded.bars.time
    spans = {name: fold.split[name] for name in ("train", "validation", "test")}
    return {k: [iso(time[first]), iso(time[end - 1])] for k, (first, end) in spans.items()}
