"""Baselines: what simple rules earn on the same bars under the same costs and limits.

Each is a plan, the position to aim at after every bar, made from bars known by then. The plans come
at two sizes: the one nearest to 1 × equity, and the one nearest to the team's mean exposure.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from gm_jax.env import direct
from gm_jax.market import features
from gm_jax.report import policies
from gm_jax.report.backtest import Ledger, backtest_each
from gm_jax.run.setup import Setup


CROSS = "sma_cross_5_20"


def baselines(setup: Setup, team: Ledger, span: tuple[int, int]) -> dict[str, Ledger]:
    """Return the ledger of each baseline on a span.

    Args:
        setup: of the run.
        team: ledger of the team on the span.
        span: half-open range of bars.
    """
    unlevered, same = sizes(setup, team, span)
    bars, settings = setup.loaded.bars, setup.settings
    short = settings.allow_short
    rising = np.sign(features.compute([CROSS], bars)[:, 0])
    crossing = np.where(rising > 0, 1, -1 if short else 0)
    always = np.ones(len(bars), dtype=np.int64)
    random = np.zeros(len(bars), dtype=np.int64)
    random[slice(*span)] = coin_flips(team, settings.max_contracts, short, settings.seed)
    plans = {
        "flat": 0 * always,
        "buy_and_hold": unlevered * always,
        "buy_and_hold_same_exposure": same * always,
        "sma_crossover": unlevered * crossing,
        "sma_crossover_same_exposure": same * crossing,
        "random_same_turnover": random,
    }
    stacked = jnp.asarray(np.stack(list(plans.values())), dtype=jnp.int32)
    ledgers = backtest_each(
        policies.planned, stacked, bars, span, setup.market, setup.params, direct
    )
    return dict(zip(plans, ledgers, strict=True))


def sizes(setup: Setup, team: Ledger, span: tuple[int, int]) -> tuple[int, int]:
    """Return contracts worth 1 × equity at the span's start, and the team's mean exposure.

    At least one contract, but none where the team never held any.
    """
    settings = setup.settings
    notional = setup.loaded.bars.close[span[0]] * settings.point_value_usd
    mean = float(np.abs(team.position).mean())
    unlevered, same = (
        min(max(round(contracts), 1), settings.max_contracts)
        for contracts in (settings.start_equity_usd / notional, mean)
    )
    return unlevered, same if mean > 0 else 0


def coin_flips(team: Ledger, most: int, short: bool, seed: int) -> np.ndarray:
    """Return positions drawn without looking, [n] i64, that trade and hold as much as the team.

    A chain of two states, flat and c contracts, with c about twice the team's mean exposure E after
    its first decision. It is in the second with probability E / c from the start. What the team
    traded beside one way in and out, 2 E, is traded on the n − 2 bars between. So exposure and
    turnover are the team's in expectation; where such a chain cannot trade as much, the exposure
    is. With shorts each entry draws its side.

    Args:
        team: ledger of n bars, flat in the first.
        most: contracts that the team may hold.
        short: whether positions may be negative.
        seed: of the draws.
    """
    bars, rng = len(team.position), np.random.default_rng(seed)
    mean = float(np.abs(team.position[1:]).mean()) if bars > 1 else 0.0
    if mean == 0:
        return np.zeros(bars, dtype=np.int64)
    contracts = min(most, math.ceil(2 * mean))
    share = mean / contracts
    leave = (float(team.traded.sum()) / (2 * mean) - 1) / max(bars - 2, 1)
    leave = min(leave, (1 - share) / share)
    enter = leave * share / max(1 - share, 1e-9)
    draws = rng.random(bars)
    sides = np.where(rng.random(bars) < 0.5, -1, 1) if short else np.ones(bars, dtype=np.int64)
    plan, held = np.zeros(bars, dtype=np.int64), 0
    for i, draw in enumerate(draws.tolist()):
        changes = draw < ((leave if held else enter) if i else share)
        if changes:
            held = 0 if held else contracts * int(sides[i])
        plan[i] = held
    return plan
