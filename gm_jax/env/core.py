"""The environment: reset, observe and step, pure functions over pytrees.

An agent observes at the close of bar t, its order fills at the open of t + 1, the account is
marked and the reward received at the close of t + 1. Everything here is for one environment;
callers vmap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm_jax.env import account, rewards
from gm_jax.env.ops import select
from gm_jax.env.team import Team, settle, start
from gm_jax.env.types import (
    CLOSE,
    MARGIN_CALL,
    OPEN_ACCOUNT,
    RUIN,
    Array,
    EnvParams,
    Market,
    Observation,
    Outcome,
    State,
)


def reset(key: Array, market: Market, params: EnvParams, team: Team) -> State:
    """Return the start of a random training window.

    With `random_start` position and controls come from the whole legal range, so that a long
    backtest meets nothing new; a position so drawn was had at the close, free of charge.
    """
    return begin(jax.random.bits(key, (reset_bits(team),), jnp.uint32), market, params, team)


def reset_many(key: Array, count: int, market: Market, params: EnvParams, team: Team) -> State:
    """Return `count` independent windows, leaves [count, …]."""
    bits = jax.random.bits(key, (count, reset_bits(team)), jnp.uint32)  # one key: quicker
    return jax.vmap(lambda own: begin(own, market, params, team))(bits)


def reset_bits(team: Team) -> int:
    """Return how many random 32-bit words choose the start of a window."""
    return 1 + team.RANDOM_BITS


def begin(bits: Array, market: Market, params: EnvParams, team: Team) -> State:
    """Return the start of the window that `bits`, [reset_bits] u32, choose."""
    window = (bits[0] % market.num_starts.astype(jnp.uint32)).astype(jnp.int32)
    fresh = start(market.starts[window], params, team)
    price, atr = market.bars[fresh.t, CLOSE], market.atr[fresh.t]
    bounds = account.bounds(fresh, market, params)
    position, controls = team.random(bits[1:], bounds, params)
    drawn = fresh.replace(
        position=position,
        controls=controls,
        stop=account.stop_price(position, price, atr, params),
    )
    return select(params.random_start, drawn, fresh)


def observe(state: State, market: Market, params: EnvParams, team: Team) -> Observation:
    """Return what the team sees at the close of bar t, and which actions are legal."""
    features = (market.features[state.t] - market.mean) / market.scale
    roles = team.role_values(state, params)
    shared = jnp.broadcast_to(features, (len(team.AGENTS), features.shape[0]))
    counts = jnp.stack([state.position, state.steps]).astype(jnp.float32)
    most = jnp.stack([params.max_contracts, params.episode_length]).astype(jnp.float32)
    position, elapsed = counts / most
    book = jnp.stack([position, rewards.drawdown_of(state), 1 - elapsed])
    return Observation(
        obs=jnp.concatenate([shared, roles[:, None]], axis=1),
        global_obs=jnp.concatenate([features, book, roles]),
        mask=team.masks(state, account.bounds(state, market, params), params),
    )


def step(
    state: State, actions: Array, market: Market, params: EnvParams, team: Team
) -> tuple[State, Outcome]:
    """Carry one environment from the close of bar t to the close of bar t + 1.

    Args:
        state: at the close of bar t.
        actions: [A] i32, one verb per agent, decided at the same time.
        market: the bars.
        params: of the environment.
        team: how the decisions come to one order.

    Returns:
        The state before any reset, and what the step emits. Ruin and margin call terminate; the
        end of the window and the drawdown limit truncate.
    """
    order = team.compose(state, actions, account.bounds(state, market, params), params)
    after, fill = settle(state, order, market, params, team)

    seen = rewards.Step(state, after, order, fill, market)
    shared = rewards.equity(seen, params)
    terms = {name: rewards.TERMS[name](seen, params) for name in team.TERMS}
    reward = jnp.full(len(team.AGENTS), shared - params.risk_aversion * shared**2)
    for name, agent in team.TERMS.items():
        weighted = params.reward_weights[name] * terms[name]
        reward = reward.at[team.AGENTS.index(agent)].add(weighted)

    terminated = (after.closed == RUIN) | (after.closed == MARGIN_CALL)
    ended = (after.steps >= params.episode_length) | (after.closed != OPEN_ACCOUNT)
    return after, Outcome(
        reward=reward,
        terms={"equity": shared, **terms},
        terminated=terminated,
        truncated=ended & ~terminated,
        target=state.position + order.trade,
        fill=fill,
    )
