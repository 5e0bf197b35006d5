"""Reward terms: what each pays for, in basis points of the start equity (`stance` in nats).

None pays for acting or waiting: on a martingale, before costs, `equity` and `shortfall` have mean
zero whatever is done, `stance` whatever is said that is not known; `drawdown` only charges for risk
that was taken.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import struct

from gm_jax.env import stances
from gm_jax.env.types import (
    CLOSE,
    FLAGS,
    GAP,
    OPEN,
    ROLL,
    Array,
    EnvParams,
    Fill,
    Market,
    Order,
    State,
)


BASIS_POINTS = 1e4


class Step(struct.PyTreeNode):
    """What a reward term may look at."""

    before: State
    after: State
    order: Order
    fill: Fill
    market: Market

    @property
    def bar(self) -> Array:
        """The bar after the decision, [6] i32."""
        return self.market.bars[self.after.t]


def equity(step: Step, params: EnvParams) -> Array:
    """Return the change of net equity after all costs, bp of start equity."""
    return in_bp(step.after.equity - step.before.equity, params)


def drawdown(step: Step, params: EnvParams) -> Array:
    """Return −max(0, increase of drawdown), bp of the peak."""
    del params
    return -jnp.maximum(drawdown_of(step.after) - drawdown_of(step.before), 0) * BASIS_POINTS


def drawdown_of(state: State) -> Array:
    """Return (peak − equity) / peak."""
    return (state.peak - state.equity).astype(jnp.float32) / state.peak.astype(jnp.float32)


def shortfall(step: Step, params: EnvParams) -> Array:
    """Return −(price paid beyond the decision price + drift against what was left), bp.

    The order's own costs count, those of a roll or a stop do not.

    Source: implementation shortfall, Perold (1988).
    """
    bar, filled = step.bar, step.fill.traded
    gap = jnp.where((bar[FLAGS] & ROLL) != 0, 0, bar[GAP])
    left = step.order.wanted - filled
    drift = filled * gap + left * (gap + bar[CLOSE] - bar[OPEN])
    return -in_bp(drift * params.tick_cents + step.fill.order_cost, params)


def stance(step: Step, params: EnvParams) -> Array:
    """Return how much likelier the next bar is under the stance than without, nats."""
    del params
    move = step.market.signals[step.after.t, stances.RETURN]
    return stances.log_ratio(step.market.law, step.order.controls.stance, move)


def in_bp(cents: Array, params: EnvParams) -> Array:
    """Convert cents to basis points of the start equity."""
    scale = BASIS_POINTS / params.start_equity.astype(jnp.float32)
    return cents.astype(jnp.float32) * scale


# every term beside the change of equity; a team's TERMS says who receives which
TERMS: dict[str, Callable[[Step, EnvParams], Array]] = {
    "drawdown": drawdown,
    "shortfall": shortfall,
    "stance": stance,
}
