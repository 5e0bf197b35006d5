"""The proof that nobody sees the future, over the whole environment.

From bars onward, with fitted quantities, masks of usable bars and window starts held fixed: change
every bar after t, and everything emitted at steps up to t and received by the close of t stays
bit-equal.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import arrays, core
from gm_jax.mappo import networks
from gm_jax.mappo.learner import init_state
from gm_jax.market.bars import Bars
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import SYSTEMS, System
from tests.mappo.problems import SMALL


CHANGES = 100
STEPS = 400
CHANGED = {
    "tactical": {"market_bars": 3_000},
    # the law has something to say only where regimes are known, after 2,300 bars; with small
    # contracts caps follow every change of volatility
    "strategic": {"market_bars": 5_000, "point_value_usd": 2.0, "max_contracts": 90},
}


def prepared(system: System) -> Setup:
    """Return a small planted problem of a system, with stops, shorts and a policy that acts."""
    changes = {"stop_atr": 1.0, "allow_short": True, "initial_neutral": 0.3}
    changes |= CHANGED[system.name]
    settings = system.settings.replace(**(SMALL | changes))
    loaded = load(Source(market="planted", seed=0), settings, system.minutes)
    return prepare(system, settings, loaded)


def scrambled(bars: Bars, t: int, rng: np.random.Generator) -> Bars:
    """Replace every price and volume after bar t by noise on the tick."""
    later = len(bars) - t - 1
    closes = np.rint(60_000 + np.cumsum(rng.normal(0, 200, later))).clip(8_000) / 4
    opens = closes + rng.integers(-400, 400, later) / 4
    new = {
        "open": opens,
        "close": closes,
        "high": np.maximum(opens, closes) + rng.integers(0, 200, later) / 4,
        "low": np.minimum(opens, closes) - rng.integers(0, 200, later) / 4,
        "volume": rng.integers(0, 5_000, later).astype(float),
    }
    joined = {k: np.concatenate([getattr(bars, k)[: t + 1], v]) for k, v in new.items()}
    return dataclasses.replace(bars, **joined)


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_up_to_t_depends_on_bars_after_t(name):
    setup = prepared(SYSTEMS[name])
    team = setup.system.team
    rng = np.random.default_rng(0)
    settings, bars = setup.settings, setup.loaded.bars
    bars = dataclasses.replace(
        bars, hole=rng.random(len(bars)) < 0.02, roll=rng.random(len(bars)) < 0.02
    )
    state = init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    actor, first = state.networks.actor, setup.warmup + 30

    @jax.jit
    def play(market):
        def body(env, key):
            obs = core.observe(env, market, setup.params, team)
            logits = networks.masked_logits(setup.config, actor, obs.obs, obs.mask)
            actions = jax.random.categorical(key, logits)
            after, outcome = core.step(env, actions, market, setup.params, team)
            return after, ((obs, logits, actions), (outcome, after))

        start = core.reset(jax.random.key(1), market, setup.params, team)
        keys = jax.random.split(jax.random.key(2), STEPS)
        return jax.lax.scan(body, start, keys)[1]

    def market_of(bars: Bars):
        built = arrays.build_market(bars, settings, team, setup.split.train, 100)
        return built.replace(
            starts=jnp.full_like(built.starts, first),
            num_starts=jnp.int32(1),
            mean=setup.market.mean,
            scale=setup.market.scale,
            law=setup.market.law,
        )

    emitted, received = jax.device_get(play(market_of(bars)))
    assert received[0].fill.roll_cost.any()
    assert len(np.unique(received[1].position)) > 3
    if name == "strategic":
        controls = received[1].controls
        sessions = (np.diff(controls.cap) != 0) & (np.diff(controls.share) == 0)
        assert sessions.any()
        assert np.count_nonzero(received[0].terms["stance"]) > STEPS / 2
    differing = 0
    for t in rng.integers(first, first + STEPS - 1, CHANGES):
        n = t - first  # step n is decided at the close of t; step n - 1 was received by then
        again, got = jax.device_get(play(market_of(scrambled(bars, int(t), rng))))
        up_to = lambda tree, end: jax.tree.map(lambda x: x[:end], tree)  # noqa: E731
        jax.tree.map(np.testing.assert_array_equal, up_to(again, n + 1), up_to(emitted, n + 1))
        jax.tree.map(np.testing.assert_array_equal, up_to(got, n), up_to(received, n))
        differing += not np.array_equal(got[1].equity[n:], received[1].equity[n:])
    assert differing > CHANGES * 0.9  # the change did reach the account afterwards
