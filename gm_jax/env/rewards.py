"""Reward terms: what each pays for, in basis points of the start equity.

None pays for acting or waiting: on a martingale, before costs, `equity` and `shortfall` have mean
zero whatever is done; `drawdown` only charges for risk that was taken.
"""

from __future__ import annotations

import jax.numpy as jnp

from gm_jax.env.types import CLOSE, FLAGS, GAP, OPEN, ROLL, Array, EnvParams, Fill, Order, State


BASIS_POINTS = 1e4


def equity(before: State, after: State, params: EnvParams) -> Array:
    """Return the change of net equity after all costs, bp of start equity."""
    return in_bp(after.equity - before.equity, params)


def drawdown(before: State, after: State) -> Array:
    """Return −max(0, increase of drawdown), bp of the peak."""
    return -jnp.maximum(drawdown_of(after) - drawdown_of(before), 0) * BASIS_POINTS


def drawdown_of(state: State) -> Array:
    """Return (peak − equity) / peak."""
    return (state.peak - state.equity).astype(jnp.float32) / state.peak.astype(jnp.float32)


def shortfall(order: Order, fill: Fill, bar: Array, params: EnvParams) -> Array:
    """Return −(price paid beyond the decision price + drift against what was left), bp.

    Args:
        order: what was wanted at the decision.
        fill: what was filled; its costs count, those of a roll do not.
        bar: [6] i32, the bar after the decision.
        params: of the environment.

    Source: implementation shortfall, Perold (1988).
    """
    gap = jnp.where((bar[FLAGS] & ROLL) != 0, 0, bar[GAP])
    left = order.wanted - fill.traded
    drift = fill.traded * gap + left * (gap + bar[CLOSE] - bar[OPEN])
    return -in_bp(drift * params.tick_cents + fill.cost - fill.roll_cost, params)


def in_bp(cents: Array, params: EnvParams) -> Array:
    """Convert cents to basis points of the start equity."""
    scale = BASIS_POINTS / params.start_equity.astype(jnp.float32)
    return cents.astype(jnp.float32) * scale
