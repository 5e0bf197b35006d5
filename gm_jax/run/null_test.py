"""The null test: the whole pipeline on copies of the market that have no direction.

A copy has an independent random sign per bar (`market.signs`): drift, seasons and clustering stay,
what could be foreseen of the direction goes. A team is trained and chosen on each copy just as on
the market itself. The statistic is the test split's Sharpe ratio less that of holding the mean
position throughout: what timing added. p = (1 + copies at least as good) / (N + 1).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env import arrays, direct
from gm_jax.env.team import Team
from gm_jax.env.types import Array, EnvParams, Market, State
from gm_jax.mappo import members
from gm_jax.mappo.types import Networks
from gm_jax.market.signs import random_signs
from gm_jax.report.backtest import backtest_many
from gm_jax.report.metrics import session_closes, session_returns, sharpe_ratios
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import team_policy
from gm_jax.run.mandate import mandate
from gm_jax.run.members import forget, train_members
from gm_jax.run.setup import Setup
from gm_jax.run.source import digest


NAME = "null_test"
FILE = f"{NAME}.json"


def null_test(directory: RunDirectory, setup: Setup, networks: Networks) -> dict[str, Any]:
    """Return the real statistic, those of the copies, and the p-value.

    Copies that an earlier try has finished are read from `null_test.json`.

    Args:
        directory: of the run.
        setup: of the run.
        networks: that validation chose on the real market.

    Raises:
        StoppedEarlyError: a signal came; what was done is saved.
    """
    count, length = setup.settings.null_copies, setup.settings.num_episodes
    null = _known(directory, length)
    for trained in train_members(directory, NAME, range(len(null), count), partial(copy, setup)):
        null += map(float, statistics(trained.setups, trained.networks))
        directory.write(FILE, {"num_episodes": length, "statistics": null})
        forget(directory, NAME)
    real = float(statistics([setup], jax.tree.map(lambda x: x[None], networks))[0])
    null = null[:count]
    return {
        "copies": count,
        "statistic": real,
        "null": null,
        "null_mean": float(np.mean(null)),
        "p_value": p_value(real, null),
    }


def p_value(real: float, null: Sequence[float]) -> float:
    """Return (1 + #{null ≥ real}) / (N + 1)."""
    return (1 + sum(score >= real for score in null)) / (len(null) + 1)


def copy(setup: Setup, number: int) -> Setup:
    """Return the setup with a copy of its market without direction; same split, fitted anew.

    Args:
        setup: of the run.
        number: of the copy; with the run's seed it decides the signs.
    """
    seed = int(np.random.SeedSequence([setup.settings.seed, number]).generate_state(1)[0])
    bars, train = random_signs(setup.loaded.bars, setup.split.train, seed), setup.split.train
    strategic = setup.loaded.strategic
    bounds = None if strategic is None else mandate(Path(strategic), bars)[0]
    loaded = dataclasses.replace(
        setup.loaded, bars=bars, digest=digest(bars), world=None, mandate=bounds
    )
    market = arrays.build_market(
        bars, setup.settings, setup.system.team, train, setup.episode_length, bounds
    )
    return dataclasses.replace(setup, loaded=loaded, market=market)


def statistics(setups: Sequence[Setup], networks: Networks) -> np.ndarray:
    """Return what timing added to the Sharpe ratio on each member's test split, [M].

    An account at rest counts as 0, and so does holding nothing.

    Args:
        setups: M of them, on markets of the same bars' times.
        networks: leaves [M, …].
    """
    setup = setups[0]
    span = setup.split.test
    markets = [one.market for one in setups]
    axes = members.axes_of(markets)
    market = members.stack(markets, axes)
    rest = {"span": span, "market": market, "params": setup.params, "market_axes": axes}
    team = backtest_many(
        team_policy(setup.config), networks.actor, 0, team=setup.system.team, **rest
    )
    mean = team.position.mean(axis=1)
    held = np.sign(mean) * np.where(mean == 0, 0, np.maximum(np.rint(np.abs(mean)), 1))
    holding = backtest_many(_hold, jnp.asarray(held, jnp.int32), 0, team=direct, **rest)
    session = setup.loaded.bars.session[slice(*span)]
    start = int(setup.params.start_equity)
    mine, theirs = (
        sharpe_ratios(session_returns(session_closes(start, curves.equity, session)))
        for curves in (team, holding)
    )
    return mine - theirs


def _hold(held: Array, state: State, market: Market, params: EnvParams, team: Team) -> Array:
    """Hold so many contracts, [] i32, throughout; a policy for the team `direct`."""
    del state, market, params, team
    return held[None]


def _known(directory: RunDirectory, length: int) -> list[float]:
    """Read the statistics of the first copies, done by an earlier try of so many iterations."""
    path = directory.path / FILE
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return list(found["statistics"]) if found["num_episodes"] == length else []
