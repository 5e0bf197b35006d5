"""Rollout: H steps of N environments, acting with the team's networks."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gm_jax.env import core
from gm_jax.env.ops import select
from gm_jax.env.team import Team
from gm_jax.env.types import Array, EnvParams, Market, Observation, State
from gm_jax.mappo import networks
from gm_jax.mappo.sharding import over_devices
from gm_jax.mappo.types import Config, Totals, TrainState, Transition


def critic_input(obs: Observation, config: Config) -> Array:
    """Return what the critic sees: everything (central) or each agent's own view (local)."""
    return obs.global_obs if config.central else obs.obs


def auto_reset(
    bits: Array, state: State, done: Array, market: Market, params: EnvParams, team: Team
) -> State:
    """Return the states, those that are done replaced by the start of a new window.

    Args:
        bits: [N, core.reset_bits] u32, which choose the windows.
        state: leaves [N].
        done: [N] bool.
        market: the bars.
        params: of the environment.
        team: whose environment it is.
    """
    fresh = jax.vmap(partial(core.begin, market=market, params=params, team=team))(bits)
    return jax.vmap(select)(done, fresh, state)


def chances(key: Array, config: Config) -> tuple[Array, Array]:
    """Return all that is random in one step of every environment.

    Returns:
        Gumbel noise, [N, A, K] f32: the largest logit with noise added is a draw from the policy.
        Bits that choose new windows, [N, core.reset_bits] u32.
    """
    action_key, reset_key = jax.random.split(key)
    system, count = config.system, config.num_envs
    noise = jax.random.gumbel(action_key, (count, len(system.agents), len(system.actions)))
    bits = jax.random.bits(reset_key, (count, core.reset_bits(system.team)), jnp.uint32)
    return over_devices((noise, bits), config)


def collect(
    state: TrainState, key: Array, market: Market, params: EnvParams, config: Config
) -> tuple[State, Transition, Totals]:
    """Play `rollout_length` steps in every environment.

    Returns:
        The environments afterwards, the transitions, [H, N, ...], and what they came to.
    """
    team = config.system.team
    observe = jax.vmap(partial(core.observe, market=market, params=params, team=team))
    advance = jax.vmap(partial(core.step, market=market, params=params, team=team))
    actor = networks.in_product_type(config, state.networks.actor)

    def step(
        carry: tuple[State, Totals], chance: tuple[Array, Array]
    ) -> tuple[tuple[State, Totals], Transition]:
        (env, totals), (noise, bits) = carry, chance
        obs = observe(env)
        logits = networks.masked_logits(config, actor, obs.obs, obs.mask)
        action = jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)
        log_prob, _ = networks.log_probs(logits, action)
        after, outcome = advance(env, action)
        done = outcome.terminated | outcome.truncated
        transition = Transition(
            obs=obs.obs,
            global_obs=critic_input(obs, config),
            next_global_obs=critic_input(observe(after), config),
            mask=obs.mask,
            action=action,
            log_prob=log_prob,
            reward=outcome.reward,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
        )
        came = Totals(outcome.terms, outcome.fill.cost)
        following = auto_reset(bits, after, done, market, params, team)
        carry = (following, jax.tree.map(jnp.add, totals, came))
        return over_devices(carry, config), transition

    nothing = jnp.zeros_like(state.env.equity)
    terms = dict.fromkeys(("equity", *team.TERMS), nothing.astype(jnp.float32))
    start = (state.env, Totals(terms, nothing))
    keys = jax.random.split(key, config.rollout_length)
    drawn = jax.vmap(partial(chances, config=config))(keys)  # at once: no kernels for it in a step
    (env, totals), transitions = jax.lax.scan(step, start, drawn)
    return env, transitions, totals
