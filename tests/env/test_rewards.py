"""Rewards: worth nothing on a martingale, and exactly what the account did."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account, core, tactical
from gm_jax.env.types import REGULAR, SESSION_START, TRADED
from gm_jax.report.policies import draw
from gm_jax.settings import Settings
from tests.env import worlds
from tests.mappo.probes import market


ENVS, STEPS = 256, 400
PRICE = 60_000
FREE = {"commission_usd": 0.0, "spread_ticks_regular": 0, "spread_ticks_other": 0, "impact": 0.0}
COSTLY = {"impact": 2.0, "max_drawdown": 0.006, "daily_loss": 0.002}
WEIGHTS = {"reward_drawdown": 0.3, "reward_shortfall": 0.7, "risk_aversion": 0.01}


@lru_cache
def martingales() -> np.ndarray:
    """Draw a path per environment, [ENVS, STEPS + 1, 6]: symmetric gaps and moves, fat tails."""
    rng = np.random.default_rng(0)
    gaps, moves = np.rint(rng.standard_t(3, (2, ENVS, STEPS + 1)) * [[[5]], [[8]]]).astype(int)
    close = PRICE + np.cumsum(gaps + moves, axis=1)
    open_ = close - moves
    gaps[:, 0] = 0
    # one bar in thirty has no volume: the order waits
    flags = TRADED * (rng.random(gaps.shape) > 0.03) + REGULAR
    flags[:, ::50] |= SESSION_START
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    return np.stack([open_, high, low, close, gaps, flags], axis=2)


@jax.jit
def _play(key, bars, params):
    """Random legal actions, a path per environment; nothing is reset."""

    @jax.vmap
    def one(key, bars):
        zero = np.zeros(STEPS + 1, dtype=int)
        world = market(zero, zero).replace(bars=bars, impact=jnp.full(STEPS + 1, 0.5))
        first, rest = jax.random.split(key)
        state = core.reset(first, world, params, tactical).replace(t=jnp.int32(0))

        def body(state, key):
            mask = tactical.masks(state, account.bounds(state, world, params), params)
            actions = draw(jax.random.bits(key, (3,), dtype=jnp.uint32), mask)
            after, outcome = core.step(state, actions, world, params, tactical)
            return after, (actions, state, after, outcome)

        return jax.lax.scan(body, state, jax.random.split(rest, STEPS))[1]

    return one(jax.random.split(key, ENVS), bars)


@lru_cache
def play(allow_short, **changes):
    settings = Settings(allow_short=allow_short, **changes)
    bars = jnp.asarray(martingales(), dtype=jnp.int32)
    return jax.device_get(_play(jax.random.key(1), bars, worlds.params_of(settings)))


def z_score(x) -> float:
    """Return sum / √(sum of squares): standard normal for martingale differences."""
    x = np.asarray(x, dtype=np.float64)
    return x.sum() / np.sqrt((x**2).sum())


@pytest.mark.parametrize("allow_short", [False, True])
@pytest.mark.parametrize("term", ["equity", "shortfall"])
def test_nothing_is_earned_on_a_martingale_without_costs(allow_short, term):
    actions, before, after, outcome = play(allow_short, **FREE)
    reward = outcome.terms[term]
    assert abs(z_score(reward)) < 3
    # nor by any single verb, nor by trading or waiting, which are known before the reward
    groups = {f"{a} {k}": actions[..., a] == k for a in range(3) for k in range(5)}
    wanted = after.controls.desired != before.position
    groups |= {"wanted": wanted, "not wanted": ~wanted, "closed": before.closed != 0}
    groups |= {"long": before.position > 0, "short": before.position < 0}
    z = {name: z_score(reward[at]) for name, at in groups.items() if (reward[at] != 0).any()}
    assert len(z) >= 15
    assert max(map(abs, z.values())) < 4, z
    # the test could tell a bonus of 0.1 bp an order from nothing
    bonus = reward + 0.1 * (outcome.fill.traded != 0)
    assert z_score(bonus) > 5


def test_costs_are_the_only_drift():
    """With costs the mean is minus the costs, within the noise."""
    _, before, after, outcome = play(True, **COSTLY)
    costs = outcome.fill.cost * 1e4 / before.equity[0, 0]
    assert z_score(outcome.terms["equity"]) < -3
    assert abs(z_score(outcome.terms["equity"] + costs)) < 3
    assert (after.closed != 0).any()
    assert after.halted.any()


@pytest.mark.parametrize("allow_short", [False, True])
def test_terms_are_what_the_account_did(allow_short):
    actions, before, after, outcome = play(allow_short, **COSTLY, **WEIGHTS)
    fill, terms = outcome.fill, outcome.terms
    start = 10_000_000
    gained = (after.equity.astype(np.int64) - before.equity) * 1e4 / start
    np.testing.assert_allclose(terms["equity"], gained, rtol=1e-6)
    total = (after.equity[:, -1] - before.equity[:, 0]) * 1e4 / start
    np.testing.assert_allclose(terms["equity"].sum(1, dtype=np.float64), total, atol=1e-3)

    fallen = [1 - s.equity.astype(np.float64) / s.peak for s in (before, after)]
    increase = np.maximum(fallen[1] - fallen[0], 0) * 1e4
    assert (terms["drawdown"] <= 0).all()
    np.testing.assert_allclose(terms["drawdown"], -increase, atol=2e-3)
    assert (increase > 1).mean() > 0.05

    # shortfall: each contract wanted, against the price at the decision
    bars = martingales()[:, 1:]
    decision = martingales()[:, :-1, 3]
    flat = before.halted | (before.closed != 0)
    wanted = np.where(flat, 0, after.controls.desired) - before.position
    paid = fill.traded * (bars[..., 0] - decision)
    missed = (wanted - fill.traded) * (bars[..., 3] - decision)
    shortfall = -((paid + missed) * 50 + fill.cost) * 1e4 / start
    np.testing.assert_allclose(terms["shortfall"], shortfall, rtol=1e-5, atol=1e-5)
    assert (fill.traded[actions[..., 2] == 0] == 0).mean() > 0.5
    assert set(terms) == {"equity", "drawdown", "shortfall"}


@pytest.mark.parametrize("allow_short", [False, True])
def test_reward_by_agent_is_shared_plus_weighted_terms(allow_short):
    _, _, _, outcome = play(allow_short, **COSTLY, **WEIGHTS)
    equity, drawdown, shortfall = (
        outcome.terms[k].astype(np.float64) for k in ("equity", "drawdown", "shortfall")
    )
    shared = equity - 0.01 * equity**2
    wanted = np.stack([shared, shared + 0.3 * drawdown, shared + 0.7 * shortfall], axis=-1)
    np.testing.assert_allclose(outcome.reward, wanted, rtol=1e-5, atol=1e-4)


def test_without_weights_all_agents_share_the_change_of_equity():
    zero = dict.fromkeys(WEIGHTS, 0.0)
    _, _, _, outcome = play(True, **FREE, **zero)
    same = partial(np.testing.assert_array_equal, outcome.terms["equity"])
    for agent in range(3):
        same(outcome.reward[..., agent])


def test_a_roll_is_no_shortfall():
    """Neither its gap nor its cost is charged to execution; by hand on one bar."""
    from tests.env import test_actions as hand

    env = hand.params()
    world = hand.market((400, 403, 400, 403, hand.NORMAL | hand.ROLL))
    _, _, outcome = hand.step(hand.state(env, 2, 2), "BHb", world, env)
    # one of three bought at the open for 75 + 25 + 13 cents, two missed a rise of 3 ticks
    np.testing.assert_allclose(outcome.terms["shortfall"], -(113 + 2 * 3 * 50) / 1_000, rtol=1e-6)
    # the account: two held and one bought gain 3 ticks, less 113 and the roll's 472
    np.testing.assert_allclose(outcome.terms["equity"], (3 * 3 * 50 - 113 - 472) / 1_000, rtol=1e-5)
