"""What a team is, and what it shares with every other: a fresh account, and a bar carried through.

Deployed models play by this module too, see `export/bundle.py`: no JAX beyond `jax.numpy` here.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from gm_jax.env import account
from gm_jax.env.ops import select
from gm_jax.env.types import Array, Bounds, EnvParams, Fill, Market, Order, State


class Team(Protocol):
    """What a system's module of roles offers; `tactical.py` and `strategic.py` are two."""

    AGENTS: tuple[str, ...]
    ACTIONS: tuple[str, ...]
    TERMS: dict[str, str]
    NEUTRAL: tuple[tuple[int, ...], ...]
    RANDOM_BITS: int
    RULE_SIGNALS: int

    def initial(self, params: EnvParams) -> Any:
        """Return the controls at the start."""

    def random(self, bits: Array, bounds: Bounds, params: EnvParams) -> tuple[Array, Any]:
        """Draw position and controls from their whole legal range, by `RANDOM_BITS` u32."""

    def signal_names(self, minutes: int) -> tuple[str, ...]:
        """Return the features that the team reads beside those it observes, for bars of `minutes`.

        The first `RULE_SIGNALS` of them decide, the others are for reward terms alone.
        """

    def fit_law(self, signals: np.ndarray, train: tuple[int, int], minutes: int) -> Any:
        """Return what reward terms need to know of the training bars; None if nothing."""

    def compose(self, state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Order:
        """Turn [A] decisions into one order."""

    def masks(self, state: State, bounds: Bounds, params: EnvParams) -> Array:
        """Return [A, K] bool, the actions that could have an effect."""

    def role_values(self, state: State, params: EnvParams) -> Array:
        """Return [A] f32, what each agent sees of its own control."""

    def stopped(self, controls: Any) -> Any:
        """Return the controls after a stop."""

    def neutral(self, state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Array:
        """Return [A] i32, what each agent would do without a will of its own, the others given."""

    def follow(self, state: State, target: Array, work: Array, params: EnvParams) -> Array:
        """Return [A] actions that lead to `target` contracts, one by one if `work`."""


def rule_signals(team: Team, minutes: int) -> tuple[str, ...]:
    """Return the signals that decisions rest on: all that a deployed model needs."""
    return team.signal_names(minutes)[: team.RULE_SIGNALS]


def start(t: Array, params: EnvParams, team: Team) -> State:
    """Return a flat account with fresh controls at the close of bar t."""
    zero = jnp.zeros_like(params.start_equity)
    no = jnp.zeros_like(params.allow_short)
    return State(
        t=t,
        steps=zero,
        position=zero,
        controls=team.initial(params),
        stop=zero,
        equity=params.start_equity,
        peak=params.start_equity,
        session_equity=params.start_equity,
        halted=no,
        closing=no,
        closed=zero,
    )


def settle(
    state: State, order: Order, market: Market, params: EnvParams, team: Team
) -> tuple[State, Fill]:
    """Carry account and controls from the close of bar t to the close of bar t + 1.

    Args:
        state: at the decision.
        order: what the team decided.
        market: the bars.
        params: of the environment.
        team: whose controls a stop changes.
    """
    after, fill = account.advance(state, order, market, params)
    controls = select(fill.stopped, team.stopped(order.controls), order.controls)
    return after.replace(controls=controls), fill
