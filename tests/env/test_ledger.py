"""The account against an independent replay, exact to the cent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account, core, strategic, tactical
from gm_jax.report.policies import draw
from tests.env import replay, worlds


STEPS, ENVS = 600, 64
EVERY = {"tactical": 30, "strategic": 40}  # steps between masks that are tried out
TEAMS = {"tactical": tactical, "strategic": strategic}
SLOW = {"tactical": replay.Tactical, "strategic": replay.Strategic}
ACCOUNT = ("position", "stop", "equity", "peak", "session_equity", "halted", "closing", "closed")
ITEMS = ("gross", "commission", "spread", "impact", "roll_cost")


@partial(jax.jit, static_argnums=0)
def play(team, market, params, keys, first):
    """Run random legal actions without reset, one parameter set per environment."""

    def one(key, params, start_key):
        # drawn at the first bar, so that cap and position belong to it
        there = market.replace(starts=jnp.full_like(market.starts, first))
        state = core.reset(start_key, there, params, team)

        def body(state, key):
            mask = team.masks(state, account.bounds(state, market, params), params)
            actions = draw(jax.random.bits(key, (3,), dtype=jnp.uint32), mask)
            after, outcome = core.step(state, actions, market, params, team)
            return after, (state, actions, mask, after, outcome)

        return jax.lax.scan(body, state, jax.random.split(key, STEPS))[1]

    return jax.vmap(one)(keys[0], params, keys[1])


def replayed(slow, settings, market, first):
    """Return the independent account at a state, every leaf of which is [1]."""
    arrays = (market.bars, market.impact, market.atr)
    known = {name: getattr(first, name).item() for name in ("t", *ACCOUNT)}
    known |= {name: getattr(first.controls, name).item() for name in slow.CONTROLS}
    return slow(
        settings,
        *map(np.asarray, arrays),
        mandates=np.asarray(market.mandate),
        signals=np.asarray(market.signals),
        **known,
    )


def by_number(**arrays):
    """Return every array of [ENVS, STEPS] as rows of Python numbers, which compare fast."""
    return {name: np.asarray(x).tolist() for name, x in arrays.items()}


@pytest.mark.parametrize("allow_short", [False, True])
@pytest.mark.parametrize("name", TEAMS)
def test_ledger_equals_independent_replay(name, allow_short):
    slow = SLOW[name]
    rng = np.random.default_rng(allow_short)
    market = worlds.random_market(3 + allow_short, session=15)
    settings = [worlds.random_settings(rng, allow_short) for _ in range(ENVS)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *map(worlds.params_of, settings))
    keys = [jax.random.split(jax.random.key(i), ENVS) for i in range(2)]
    played = play(TEAMS[name], market, params, keys, jnp.int32(5))
    before, actions, mask, after, outcome = jax.device_get(played)

    fills = by_number(**{item: getattr(outcome.fill, item) for item in ITEMS})
    accounts = by_number(**{field: getattr(after, field) for field in ACCOUNT})
    accounts |= by_number(**{field: getattr(after.controls, field) for field in slow.CONTROLS})
    for env in range(ENVS):
        first = jax.tree.map(lambda x, env=env: x[env, :1], before)
        own = replayed(slow, settings[env], market, first)
        for step, decision in enumerate(actions[env].tolist()):
            row = env, step
            if step % EVERY[name] == 0:
                np.testing.assert_array_equal(mask[row], own.masks(), err_msg=str(row))
            own.step(decision)
            assert own.items == {item: fills[item][env][step] for item in ITEMS}, row
            for field, values in accounts.items():
                assert getattr(own, field) == values[env][step], (field, row)

    # the test means something only if all of it happened
    fill = outcome.fill
    seen = {
        "rolled": (fill.roll_cost > 0).sum(),
        "stopped": fill.stopped.sum(),
        "halted": after.halted.any(1).sum(),
        "closed": sum(len(set(row) - {0}) for row in after.closed.tolist()),
        "traded": (fill.traded != 0).sum(),
    }
    assert after.closing.any()
    assert (after.position < 0).any() == allow_short
    assert all(count > 10 for count in seen.values()), seen
    if name == "strategic":
        controls_were_used(before, actions, after, outcome, allow_short)
    total = fill.gross.astype(np.int64) - fill.cost
    start = before.equity[:, 0].astype(np.int64)
    np.testing.assert_array_equal(start + total.sum(1), after.equity[:, -1])


def controls_were_used(before, actions, after, outcome, allow_short):
    """See to it that every share and stance was had, and that caps and stances cut positions."""
    was, now = before.controls, after.controls
    free = ~(before.halted | before.closing | (before.closed != 0) | outcome.fill.stopped)
    at_work = free & (before.position != 0)
    assert set(now.share[at_work].tolist()) == set(range(5))
    assert set(now.stance[at_work].tolist()) == set(range(6))
    same_share = now.share == was.share
    cut = free & (actions[..., 0] == 0) & (np.abs(now.desired) < np.abs(was.desired))
    seen = {
        "recomputed by session": same_share & (now.cap != was.cap) & (was.cap >= 0),
        "recomputed by share": ~same_share & (now.cap != was.cap),
        "stands": same_share & (now.cap == was.cap) & (np.abs(now.desired) == now.cap) & at_work,
        "first": (was.cap < 0) & (now.cap > 0),
        "cut": cut,
        "cut in a crisis": cut & (now.stance == replay.CRISIS),
        "cut when volatile": cut & (now.stance == replay.VOLATILE),
        "cut when bearish": cut & (now.stance == replay.BEAR_TREND) & (was.desired > 0),
        "forgotten under a halt": before.halted & (was.desired != 0) & (now.desired == 0),
        "set under a halt": before.halted & ~same_share,
    }
    if allow_short:
        bullish = cut & (now.stance == replay.BULL_TREND) & (was.desired < 0)
        seen |= {"cut when bullish": bullish, "flipped": now.desired * was.desired < 0}
    counts = {event: int(at.sum()) for event, at in seen.items()}
    assert all(count > 10 for count in counts.values()), counts


def test_impact_is_the_same_cent_everywhere():
    """XLA's float32 √ and × give NumPy's bits over the whole range of orders."""
    params = worlds.params_of(worlds.Settings())
    contracts = jnp.arange(0, 2_000, dtype=jnp.int32)
    coefficient = jnp.linspace(0, 40, 2_000, dtype=jnp.float32)
    ours = jax.jit(jax.vmap(account.order_cost, in_axes=(0, None, 0, None)))(
        contracts, jnp.int32(1), coefficient, params
    )[2]
    q = np.arange(2_000, dtype=np.float32)
    numpy = np.ceil((np.float32(params.impact) * np.asarray(coefficient)) * (q * np.sqrt(q)))
    np.testing.assert_array_equal(ours, numpy.astype(np.int32))
