"""Policies that a backtest can run: the greedy team, baselines and the oracle.

Each is a function `(data, state, market, params, team) -> actions [A]`; what it needs to know comes
as the pytree `data`, so that many settings of one policy run side by side under vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gm_jax.env import account
from gm_jax.env.team import Team
from gm_jax.env.types import Array, EnvParams, Market, State


Policy = Callable[[Any, State, Market, EnvParams, Team], Array]


class Bayes(struct.PyTreeNode):
    """The known-best filter of a generated market with a hysteresis band."""

    belief: Array  # [T] f32, P(up) − P(down) given the bars so far
    band: Array  # [] f32, enter beyond it, leave beyond it on the other side
    high: Array  # [] i32, contracts above the band
    low: Array  # [] i32, contracts below its mirror image
    work: Array  # [] bool, trade one contract at a time


class Counterfactual(struct.PyTreeNode):
    """A policy in which one agent does something else."""

    data: Any  # of the policy
    agent: Array  # [] i32, who; -1 = nobody
    instead: Array  # [] i32, an index into INSTEAD
    key: Array  # for random actions


INSTEAD = ("neutral", "hold", "random")


def legal(state: State, actions: Array, market: Market, params: EnvParams, team: Team) -> Array:
    """Replace illegal actions by HOLD; they could have had no effect."""
    mask = team.masks(state, account.bounds(state, market, params), params)
    chosen = jnp.take_along_axis(mask, actions[:, None], axis=1)[:, 0]
    return jnp.where(chosen, actions, 0)


def planned(plan: Array, state: State, market: Market, params: EnvParams, team: Team) -> Array:
    """Aim at the position planned for the bar, [T] i32 contracts; for the team `direct`."""
    del market, params, team
    return plan[state.t][None]


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

    def one(bits: Array, mask: Array) -> Array:
        counts = list(accumulate(map(jnp.int32, mask)))  # of legal actions so far
        wanted = jnp.int32(bits % jnp.uint32(counts[-1]))
        return sum((jnp.int32(count <= wanted) for count in counts), jnp.int32(0))

    # one by one: over all environments each is a vector then, which sums along verbs are not
    return jnp.stack([one(*agent) for agent in zip(bits, mask, strict=True)])


def oracle(data: Bayes, state: State, market: Market, params: EnvParams, team: Team) -> Array:
    """Follow the Bayes filter: `high` contracts above the band, `low` below its mirror image."""
    belief, desired = data.belief[state.t], state.controls.desired
    target = jnp.where(belief < -data.band, data.low, desired)
    target = jnp.where(belief > data.band, data.high, target)
    actions = team.follow(state, target, data.work, params)
    return legal(state, actions, market, params, team)


@lru_cache
def counterfactual(policy: Policy) -> Policy:
    """Return the policy over `Counterfactual` data; one object per policy: it compiles once."""

    def changed(
        data: Counterfactual, state: State, market: Market, params: EnvParams, team: Team
    ) -> Array:
        actions = policy(data.data, state, market, params, team)
        neutral = team.neutral(state, actions, account.bounds(state, market, params), params)
        drawn = random(data.key, state, market, params, team)
        choices = jnp.stack([neutral, jnp.zeros_like(actions), drawn])
        agents = jnp.arange(actions.shape[0])
        return jnp.where(agents == data.agent, choices[data.instead], actions)

    return changed
