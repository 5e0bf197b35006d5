"""The account against an independent replay, exact to the cent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account, core, tactical
from gm_jax.report.policies import draw
from tests.env import worlds
from tests.env.replay import Replay


STEPS, ENVS = 1_000, 64


def play(market, params, keys, first):
    """Run random legal actions without reset, one parameter set per environment."""

    def one(key, params, start_key):
        state = core.reset(start_key, market, params, tactical).replace(t=first)

        def body(state, key):
            mask = tactical.masks(state, account.bounds(state, market, params), params)
            actions = draw(jax.random.bits(key, (3,), dtype=jnp.uint32), mask)
            after, outcome = core.step(state, actions, market, params, tactical)
            return after, (state, actions, mask, after, outcome)

        return jax.lax.scan(body, state, jax.random.split(key, STEPS))[1]

    return jax.device_get(jax.jit(jax.vmap(one))(keys[0], params, keys[1]))


@pytest.mark.parametrize("allow_short", [False, True])
def test_ledger_equals_independent_replay(allow_short):
    rng = np.random.default_rng(allow_short)
    market = worlds.random_market(3 + allow_short, session=15)
    settings = [worlds.random_settings(rng, allow_short) for _ in range(ENVS)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *map(worlds.params_of, settings))
    keys = [jax.random.split(jax.random.key(i), ENVS) for i in range(2)]
    before, actions, mask, after, outcome = play(market, params, keys, jnp.int32(5))
    bars, impact, atr = (np.asarray(x) for x in (market.bars, market.impact, market.atr))

    seen = {
        "rolled": 0,
        "stopped": 0,
        "halted": 0,
        "closing": 0,
        "closed": 0,
        "short": 0,
        "traded": 0,
    }
    for env in range(ENVS):
        at = partial(jax.tree.map, lambda x, env=env: x[env])
        first = at(jax.tree.map(lambda x: x[:, 0], before))
        replay = Replay(
            settings[env],
            bars,
            impact,
            atr,
            t=int(first.t),
            position=int(first.position),
            desired=int(first.controls.desired),
            limit=int(first.controls.limit),
            stop=int(first.stop),
            equity=int(first.equity),
            peak=int(first.peak),
            session_equity=int(first.session_equity),
        )
        for step in range(STEPS):
            row = env, step
            if step % 10 == 0:
                np.testing.assert_array_equal(mask[row], replay.masks(), err_msg=str(row))
            replay.step(tuple(map(int, actions[row])))
            fill = outcome.fill
            assert replay.items == {k: getattr(fill, k)[row] for k in replay.items}, row
            for name in (
                "position",
                "stop",
                "equity",
                "peak",
                "session_equity",
                "halted",
                "closing",
            ):
                assert getattr(replay, name) == getattr(after, name)[row], (name, row)
            assert replay.closed == after.closed[row]
            assert (replay.desired, replay.limit) == (
                after.controls.desired[row],
                after.controls.limit[row],
            )
        seen["rolled"] += int((outcome.fill.roll_cost[env] > 0).sum())
        seen["stopped"] += int(outcome.fill.stopped[env].sum())
        seen["halted"] += int(after.halted[env].any())
        seen["closing"] += int(after.closing[env].any())
        seen["closed"] += len(set(after.closed[env]) - {0})
        seen["short"] += int((after.position[env] < 0).sum())
        seen["traded"] += int((outcome.fill.traded[env] != 0).sum())

    # the test means something only if all of it happened
    assert (seen.pop("short") > 0) == allow_short
    assert seen.pop("closing") > 0
    assert all(count > 10 for count in seen.values()), seen
    total = outcome.fill.gross.astype(np.int64) - outcome.fill.cost
    start = before.equity[:, 0].astype(np.int64)
    np.testing.assert_array_equal(start + total.sum(1), after.equity[:, -1])


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
