"""A team of one whose action is the position itself: baselines trade through it.

Limits, delay and costs are those of every account; lots, agents and caps are not.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct

from gm_jax.env.types import Array, Bounds, EnvParams, Order, State


AGENTS: tuple[str, ...] = ("account",)
ACTIONS: tuple[str, ...] = ()  # any whole number of contracts
NEUTRAL: tuple[tuple[int, ...], ...] = ((),)
TERMS: dict[str, str] = {}
RANDOM_BITS = 0
RULE_SIGNALS = 0


class Controls(struct.PyTreeNode):
    """Nothing is remembered."""


def initial(params: EnvParams) -> Controls:
    """Return the controls at the start."""
    del params
    return Controls()


def random(bits: Array, bounds: Bounds, params: EnvParams) -> tuple[Array, Controls]:
    """Start flat: this team is not trained."""
    del bits, bounds
    return jnp.zeros_like(params.max_contracts), Controls()


def signal_names(minutes: int) -> tuple[str, ...]:
    """Return the features that the rules read: none."""
    del minutes
    return ()


def fit_law(signals: np.ndarray, train: tuple[int, int], minutes: int) -> None:
    """Return nothing: there are no reward terms."""
    del signals, train, minutes


def compose(state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Order:
    """Order the position that is wanted, as far as the account admits it.

    Args:
        state: at the decision.
        actions: [1] i32, contracts.
        bounds: of the account.
        params: of the environment.
    """
    del params
    wanted = jnp.where(bounds.flat, 0, jnp.clip(actions[0], bounds.low, bounds.high))
    trade = wanted - state.position
    return Order(trade=trade, wanted=trade, controls=Controls())


def masks(state: State, bounds: Bounds, params: EnvParams) -> Array:
    """Return [1, 0] bool: no action is numbered."""
    del state, bounds, params
    return jnp.zeros((1, 0), dtype=bool)


def role_values(state: State, params: EnvParams) -> Array:
    """Return [1] f32, the position as a share of the maximum."""
    return (state.position.astype(jnp.float32) / params.max_contracts.astype(jnp.float32))[None]


def stopped(controls: Controls) -> Controls:
    """Return the controls after a stop."""
    return controls


def neutral(state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Return [1] i32, no position."""
    del state, bounds, params
    return jnp.zeros_like(actions)


def follow(state: State, target: Array, work: Array, params: EnvParams) -> Array:
    """Return [1] i32, the target itself."""
    del state, work, params
    return target[None].astype(jnp.int32)
