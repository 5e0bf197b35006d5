"""Validation inside the program: greedy segments of whole sessions, in parallel."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gm_jax.env import account, core
from gm_jax.env.ops import select
from gm_jax.env.team import start
from gm_jax.env.types import FLAGS, SESSION_END, Array, EnvParams, Market, State
from gm_jax.mappo import networks
from gm_jax.mappo.types import Config


SESSIONS_A_YEAR = 252
MIN_SESSIONS = 5  # for a Sharpe ratio that may choose


class Segments(struct.PyTreeNode):
    """Stretches of whole sessions, each played from a flat account."""

    first: Array  # [S] i32, bar
    steps: Array  # [S] i32


def greedy(actor: Any, state: State, market: Market, params: EnvParams, config: Config) -> Array:
    """Return the most likely legal action of each agent, [A] i32, for one environment."""
    obs = core.observe(state, market, params, config.system.team)
    logits = networks.masked_logits(config, actor, obs.obs, obs.mask)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def segment_score(
    actor: Any, market: Market, params: EnvParams, segments: Segments, config: Config
) -> tuple[Array, Array]:
    """Return (score, Sharpe ratio) of the greedy team over the segments.

    Sharpe = √252 · mean / deviation of session returns (change of equity / session-start equity),
    NaN below 5 sessions or without deviation; the score is then net P&L per bar in bp.
    """
    team, actor = config.system.team, networks.in_product_type(config, actor)
    state = jax.vmap(start, in_axes=(0, None, None))(segments.first, params, team)

    def step(state: State) -> State:
        act = jax.vmap(partial(greedy, actor, market=market, params=params, config=config))
        move = jax.vmap(partial(core.step, market=market, params=params, team=team))
        return move(state, act(state))[0]

    def body(i: Array, carry: Any) -> Any:
        state, base, total, square, count = carry
        alive = i < segments.steps
        after = step(state)
        state = jax.vmap(select)(alive, after, state)
        # the last position of a segment is closed, with costs
        exit_cost = jax.vmap(partial(account.close_out, market=market, params=params))(state).cost
        last = i == segments.steps - 1
        state = state.replace(equity=state.equity - jnp.where(last, exit_cost, 0))
        ended = alive & ((market.bars[state.t, FLAGS] & SESSION_END) != 0)
        gain = (state.equity - base).astype(jnp.float32) / base.astype(jnp.float32)
        gain = jnp.where(ended, gain, 0)
        base = jnp.where(ended, state.equity, base)
        return state, base, total + gain, square + gain**2, count + ended.astype(jnp.float32)

    zero = jnp.zeros(segments.first.shape)
    carry = (state, state.equity, zero, zero, zero)
    carry = jax.lax.fori_loop(0, segments.steps.max(), body, carry)
    state, total, square, count = carry[0], *(x.sum() for x in carry[2:])
    mean = total / jnp.maximum(count, 1)
    variance = (square - count * mean**2) / jnp.maximum(count - 1, 1)
    earned = (state.equity - params.start_equity).astype(jnp.float32).sum()
    per_bar = 1e4 * earned / params.start_equity.astype(jnp.float32) / segments.steps.sum()
    known = (count >= MIN_SESSIONS) & (variance > 1e-12)
    sharpe = SESSIONS_A_YEAR**0.5 * mean / jnp.sqrt(jnp.where(known, variance, 1))
    return jnp.where(known, sharpe, per_bar), jnp.where(known, sharpe, jnp.nan)
