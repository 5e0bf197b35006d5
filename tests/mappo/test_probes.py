"""Each probe fails for one broken stage: value, bootstrap at either ending, discount, policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import core
from gm_jax.mappo import learner, networks, value_norm
from gm_jax.mappo.rollout import critic_input
from tests.mappo import probes


def trained(world, chosen=False, **changes):
    """Train on a probe; return a function bars → values [n, A] in bp, and the actors' logits."""
    config, hyper, params, segments = probes.problem(chosen, **changes)
    state = learner.init_state(jax.random.key(0), world, params, config)
    for _ in range(4):
        state, _ = learner.train(
            state, jnp.int32(100), world, params, hyper, segments, config=config
        )
    nets = state.networks

    @jax.vmap
    def look(t):
        env = core.start(t, params, config.system.team)
        obs = core.observe(env, world, params, config.system.team)
        value = networks.values(config, nets.critic, critic_input(obs, config))
        logits = networks.masked_logits(config, nets.actor, obs.obs, obs.mask)
        return value_norm.denormalise(nets.value_norm, value), logits

    return look


@pytest.mark.parametrize("critic", ["central", pytest.param("local", marks=pytest.mark.slow)])
def test_constant_reward_is_worth_the_whole_future_past_the_window(critic):
    """Reward 1 bp for ever: V = 1 / (1 − γ) = 10, though windows end after 20 steps."""
    world = probes.market(np.full(probes.BARS, 20), np.zeros(probes.BARS))
    value, _ = trained(world, critic=critic)(jnp.arange(50))
    np.testing.assert_allclose(value, 10, rtol=0.05)


def test_value_depends_on_what_is_seen():
    """γ = 0 and a signal of the next move: V = ±2 bp by the signal."""
    moves = 40 * np.random.default_rng(0).choice([-1, 1], probes.BARS)
    world = probes.market(moves, np.append(np.sign(moves[1:]), 0))
    value, _ = trained(world, gamma=0.0)(jnp.arange(50))
    np.testing.assert_allclose(value, np.sign(moves[1:51])[:, None] * 2.0 * np.ones(3), rtol=0.07)


def test_ruin_has_no_future():
    """Every fifth move ruins the account: before it V is that loss, with no bootstrap.

    The steps before it see the loss coming at a discount: V(k) = −9500 · γᵏ.
    """
    moves = np.zeros(probes.BARS, dtype=int)
    moves[4::5] = -190_000  # ticks of $0.50 on $100,000: 95 %
    world = probes.market(moves, -(np.arange(probes.BARS) % 5) / 4)
    value, _ = trained(world)(jnp.arange(5, 9))
    wanted = -9_500 * 0.9 ** np.array([3.0, 2, 1, 0])
    np.testing.assert_allclose(value, wanted[:, None] * np.ones(3), rtol=0.05)


def test_policy_takes_what_pays():
    """Long where the signal is +1, flat where it is −1."""
    moves = 40 * np.random.default_rng(1).choice([-1, 1], probes.BARS)
    world = probes.market(moves, np.append(np.sign(moves[1:]), 0))
    _, logits = trained(world, chosen=True, gamma=0.0)(jnp.arange(200))
    acts = np.asarray(jax.nn.softmax(logits[:, 0]))[:, 1:].sum(1)  # of the deciding agent
    assert (acts[moves[1:201] > 0] > 0.9).all()
    assert (acts[moves[1:201] < 0] < 0.1).all()
