"""Rollout: H steps of N environments, acting with the team's networks."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gm_jax.env import core
from gm_jax.env.ops import select
from gm_jax.env.types import Array, EnvParams, Market, Observation, State
from gm_jax.mappo import networks
from gm_jax.mappo.sharding import over_devices
from gm_jax.mappo.types import Config, Totals, TrainState, Transition


def critic_input(obs: Observation, config: Config) -> Array:
    """Return what the critic sees: everything (central) or each agent's own view (local)."""
    return obs.global_obs if config.central else obs.obs


def auto_reset(
    key: Array, state: State, done: Array, market: Market, params: EnvParams, config: Config
) -> State:
    """Return the states, those that are done replaced by the start of a new window."""
    fresh = core.reset_many(key, config.num_envs, market, params, config.system.team)
    return jax.vmap(select)(done, fresh, state)


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

    def step(carry: tuple[State, Totals], key: Array) -> tuple[tuple[State, Totals], Transition]:
        env, totals = carry
        action_key, reset_key = jax.random.split(key)
        obs = observe(env)
        logits = networks.masked_logits(config, actor, obs.obs, obs.mask)
        action = jax.random.categorical(action_key, logits).astype(jnp.int32)
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
        following = auto_reset(reset_key, after, done, market, params, config)
        carry = (following, jax.tree.map(jnp.add, totals, came))
        return over_devices(carry, config), transition

    nothing = jnp.zeros_like(state.env.equity)
    terms = dict.fromkeys(("equity", *team.TERMS), nothing.astype(jnp.float32))
    start = (state.env, Totals(terms, nothing))
    keys = jax.random.split(key, config.rollout_length)
    (env, totals), transitions = jax.lax.scan(step, start, keys)
    return env, transitions, totals
