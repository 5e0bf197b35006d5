"""Policies that a backtest can run: the greedy team, baselines and the oracle.

Each is a function `(data, state, market, params, team) -> actions [A]`; what it needs to know comes
as the pytree `data`, so that many settings of one policy run side by side under vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gm_jax.env import account
from gm_jax.env.core import Team
from gm_jax.env.types import Array, EnvParams, Market, State


Policy = Callable[[Any, State, Market, EnvParams, Team], Array]


class Bayes(struct.PyTreeNode):
    """The known-best filter of a generated market with a hysteresis band."""

    belief: Array  # [T] f32, P(up) − P(down) given the bars so far
    band: Array  # [] f32, enter beyond it, leave beyond it on the other side
    size: Array  # [] i32, contracts


def legal(state: State, actions: Array, market: Market, params: EnvParams, team: Team) -> Array:
    """Replace illegal actions by HOLD; they could have had no effect."""
    mask = team.masks(state, account.bounds(state, market, params), params)
    chosen = jnp.take_along_axis(mask, actions[:, None], axis=1)[:, 0]
    return jnp.where(chosen, actions, 0)


def flat(data: Any, state: State, market: Market, params: EnvParams, team: Team) -> Array:
    """Hold nothing."""
    del data
    return buy_and_hold(jnp.zeros_like(state.position), state, market, params, team)


def buy_and_hold(
    contracts: Array, state: State, market: Market, params: EnvParams, team: Team
) -> Array:
    """Hold `contracts` throughout."""
    del market
    return team.follow(state, contracts, params)


def random(key: Array, state: State, market: Market, params: EnvParams, team: Team) -> Array:
    """Draw every agent's action evenly from the legal ones."""
    mask = team.masks(state, account.bounds(state, market, params), params)
    bits = jax.random.bits(jax.random.fold_in(key, state.t), mask.shape[:1], dtype=jnp.uint32)
    return draw(bits, mask)


def draw(bits: Array, mask: Array) -> Array:
    """Choose one legal action per agent, [A] i32, from 32 random bits each.

    Args:
        bits: [A] u32.
        mask: [A, K] bool.
    """
    legal = jnp.cumsum(mask, axis=-1)
    wanted = bits % legal[:, -1].astype(jnp.uint32)
    return jnp.argmax(legal > wanted.astype(jnp.int32)[:, None], axis=-1).astype(jnp.int32)


def oracle(data: Bayes, state: State, market: Market, params: EnvParams, team: Team) -> Array:
    """Follow the Bayes filter: long above the band, flat (or short) below its mirror image."""
    belief = data.belief[state.t]
    bear = jnp.where(params.allow_short, -data.size, 0)
    desired = state.controls.desired
    target = jnp.where(belief > data.band, data.size, jnp.where(belief < -data.band, bear, desired))
    return legal(state, team.follow(state, target, params), market, params, team)
