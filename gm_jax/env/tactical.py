"""The tactical team: direction, position limit and execution, decided at the same time.

Controls are a desired position D and a limit L. In one step
1. `risk`:      L := clip(L ± lots, 0, max)
2. `tactical`:  D := clip(D ± lots, lo·L, L)       (lo = −1 with shorts, else 0)
3. |p| > L: the excess is traded whatever execution says; R := D − p
   (a mandate, such as that of a strategic run, bounds D and p like L)
4. `execution`: with R's sign SMALL trades one contract, LARGE all of R; otherwise nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct

from gm_jax.env.ops import lots_towards, uniform
from gm_jax.env.types import Array, Bounds, EnvParams, Order, State


AGENTS: tuple[str, ...] = ("tactical", "risk", "execution")
ACTIONS: tuple[str, ...] = ("HOLD", "BUY_SMALL", "BUY_LARGE", "SELL_SMALL", "SELL_LARGE")
HOLD, BUY_SMALL, BUY_LARGE, SELL_SMALL, SELL_LARGE = range(5)
_HOLDS = np.arange(len(ACTIONS)) == HOLD
# of execution: the way a verb trades, and whether it trades one contract at most
_SIGN = np.array([0, 1, 1, -1, -1], np.int32)
_ONE = np.array([False, True, False, True, False])
# what an agent without a will of its own may do: hold, and trade whatever is wanted
NEUTRAL: tuple[tuple[int, ...], ...] = ((HOLD,), (HOLD,), (BUY_LARGE, SELL_LARGE))
# reward terms beside the shared change of equity, by the agent that receives them
TERMS: dict[str, str] = {"drawdown": "risk", "shortfall": "execution"}
RANDOM_BITS = 3
RULE_SIGNALS = 0


class Controls(struct.PyTreeNode):
    """What the team has decided so far, in contracts."""

    desired: Array  # i32, D
    limit: Array  # i32, L


def initial(params: EnvParams) -> Controls:
    """Return the controls at the start: nothing desired, the limit at its maximum."""
    return Controls(jnp.zeros_like(params.max_contracts), params.max_contracts)


def random(bits: Array, bounds: Bounds, params: EnvParams) -> tuple[Array, Controls]:
    """Draw position and controls from their whole legal range.

    Args:
        bits: [RANDOM_BITS] u32 random bits.
        bounds: of a flat account.
        params: of the environment.
    """
    low, high = jnp.maximum(bounds.low, bounds.least), jnp.minimum(bounds.high, bounds.most)
    position = uniform(bits[0], low, high)
    limit = uniform(bits[1], jnp.zeros_like(params.max_contracts), params.max_contracts)
    low, high = _kept(limit, bounds, params)
    return position, Controls(uniform(bits[2], low, high), limit)


def signal_names(minutes: int) -> tuple[str, ...]:
    """Return the features that the rules read: none."""
    del minutes
    return ()


def fit_law(signals: np.ndarray, train: tuple[int, int], minutes: int) -> None:
    """Return nothing: no reward term depends on fitted quantities."""
    del signals, train, minutes


def moves(params: EnvParams) -> Array:
    """Return [K] i32, the contracts each verb stands for."""
    small, large = params.lots_small, params.lots_large
    return jnp.stack([jnp.zeros_like(small), small, large, -small, -large])


def _kept(limit: Array, bounds: Bounds, params: EnvParams) -> tuple[Array, Array]:
    """Return the positions that limit and mandate let the team keep, lowest and highest."""
    low = jnp.where(params.allow_short, jnp.maximum(-limit, bounds.least), 0)
    return low, jnp.minimum(limit, bounds.most)


def _desired(desired: Array, limit: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Clip a desired position to what the team may keep and the account may take."""
    low, high = _kept(limit, bounds, params)
    return jnp.clip(desired, jnp.maximum(low, bounds.low), jnp.minimum(high, bounds.high))


def _excess(position: Array, limit: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Return the trade that brings a position back to what may be kept, contracts."""
    return jnp.clip(position, *_kept(limit, bounds, params)) - position


def compose(state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Order:
    """Turn the three decisions into one order.

    Args:
        state: at the decision.
        actions: [3] i32, in the order of AGENTS.
        bounds: of the account.
        params: of the environment.
    """
    tactical, risk, execution = map(jnp.int32, moves(params)[actions])
    position = state.position
    limit = jnp.clip(state.controls.limit + risk, 0, params.max_contracts)
    desired = _desired(state.controls.desired + tactical, limit, bounds, params)
    desired = jnp.where(bounds.flat, 0, desired)
    wanted = desired - position

    excess = _excess(position, limit, bounds, params)
    chosen = jnp.where(execution * wanted > 0, jnp.abs(wanted), 0)
    small = (actions[2] == BUY_SMALL) | (actions[2] == SELL_SMALL)
    chosen = jnp.where(small, jnp.minimum(chosen, 1), chosen)
    size = jnp.maximum(chosen, jnp.abs(excess))
    trade = jnp.where(bounds.flat, wanted, jnp.sign(wanted) * size)
    return Order(trade=trade, wanted=wanted, controls=Controls(desired, limit))


def masks(state: State, bounds: Bounds, params: EnvParams) -> Array:
    """Return [3, K] bool: which actions could have an effect, whatever the others choose.

    Narrower limits only cut what the widest reachable one admits, so that one decides.
    """
    controls, position, move = state.controls, state.position, moves(params)
    limits = jnp.clip(controls.limit + move, 0, params.max_contracts)
    risk = limits != controls.limit

    widest = jnp.minimum(controls.limit + params.lots_large, params.max_contracts)
    desired = _desired(controls.desired + move, widest, bounds, params)
    tactical = (desired != desired[0]) & jnp.logical_not(bounds.flat)

    # how far R reaches a verb's way, against what is traded that way anyway
    excess = _excess(position, widest, bounds, params)
    up, down = desired[BUY_LARGE] - position, position - desired[SELL_LARGE]
    reach = jnp.where(_SIGN > 0, up, down)
    reach = jnp.where(_ONE, jnp.minimum(reach, 1), reach)
    execution = (reach > jnp.maximum(_SIGN * excess, 0)) & jnp.logical_not(bounds.flat)
    return jnp.stack([tactical, risk, execution]) | _HOLDS


def role_values(state: State, params: EnvParams) -> Array:
    """Return [3] f32, what each agent sees of its own control, in units of the maximum."""
    controls = state.controls
    values = jnp.stack([controls.desired, controls.limit, controls.desired - state.position])
    return jnp.float32(values) / jnp.float32(params.max_contracts)


def stopped(controls: Controls) -> Controls:
    """Return the controls after a stop: what is desired is what is held, nothing."""
    return controls.replace(desired=jnp.zeros_like(controls.desired))


def neutral(state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Return [3] i32, what each agent would do without a will of its own, the others given.

    The tactical agent and the risk agent hold: nothing more is desired, the limit stays where it
    began. The execution agent trades all of R at once.

    Args:
        state: at the decision.
        actions: [3] i32, what the team decided.
        bounds: of the account.
        params: of the environment.
    """
    wanted = compose(state, actions, bounds, params).wanted
    execution = jnp.where(wanted > 0, BUY_LARGE, jnp.where(wanted < 0, SELL_LARGE, 0))
    return jnp.zeros_like(actions).at[2].set(execution)


def follow(state: State, target: Array, work: Array, params: EnvParams) -> Array:
    """Return [3] i32 actions that lead the position to `target` contracts as fast as verbs can.

    Oracles act through this, so that lots, delay, limits and costs are the team's.

    Args:
        state: at the decision.
        target: contracts.
        work: bool, trade one contract at a time instead of all at once, where the team can.
        params: of the environment.
    """
    tactical = lots_towards(target - state.controls.desired, params)
    verbs = moves(params)
    rest = state.controls.desired + verbs[tactical] - state.position
    up, down = jnp.where(work, BUY_SMALL, BUY_LARGE), jnp.where(work, SELL_SMALL, SELL_LARGE)
    execution = jnp.where(rest > 0, up, jnp.where(rest < 0, down, 0))
    return jnp.int32(jnp.stack([tactical, jnp.zeros_like(tactical), execution]))
