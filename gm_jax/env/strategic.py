"""The strategic team: direction, risk budget and stance, decided at the same time.

Controls are a desired position D, a share s of annual volatility, a cap C and a stance. In one step
1. `strategic`:          D ± lots; REDUCE_RISK D := trunc(D / 2); INCREASE_RISK D := D + sign(D)
2. `portfolio_manager`:  s by one or two steps, to its lowest or its highest;
                         C := clip(⌊s · equity / (notional · σ)⌋, 0, max) when s changes and at the
                         first close of a session, σ the annualised volatility of 20 sessions
3. `regime_detector`:    the stance; CRISIS caps at C / 4, VOLATILE at C / 2, BEAR_TREND admits no
                         longer long, BULL_TREND no larger short
4. D := clip(D, lo · cap, cap) towards flat (lo = −1 with shorts, else 0); the order is D − p.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct

from gm_jax.env import stances
from gm_jax.env.ops import uniform
from gm_jax.env.types import Array, Bounds, EnvParams, Order, State
from gm_jax.market.calendar import SESSION_MINUTES
from gm_jax.market.regimes import REGIME_WINDOW, REGIMES, labelling, unlabelled


AGENTS: tuple[str, ...] = ("strategic", "portfolio_manager", "regime_detector")
ACTIONS: tuple[str, ...] = (
    "HOLD",
    "BUY_CONSERVATIVE",
    "BUY_AGGRESSIVE",
    "SELL_CONSERVATIVE",
    "SELL_AGGRESSIVE",
    "REDUCE_RISK",
    "INCREASE_RISK",
)
HOLD, *_, REDUCE_RISK, INCREASE_RISK = range(len(ACTIONS))
# the regime detector's verbs are "keep" and, by one less, a stance
STANCES = REGIMES
NORMAL, BULL_TREND, BEAR_TREND, CRISIS, VOLATILE, CONSOLIDATION = range(len(STANCES))
SHARES = (0.05, 0.10, 0.15, 0.20, 0.25)  # of annual volatility
START_SHARE, LARGEST_SHARE = 1, len(SHARES) - 1
VOLATILITY_SESSIONS = 20
UNKNOWN = -1  # a cap that is yet to be computed
_VERBS = np.arange(len(ACTIONS))
_HOLDS = _VERBS == HOLD
_SHARES = np.array(SHARES, np.float32)
_STEPS = np.arange(len(SHARES))[:, None] + [0, 1, 2, -1, -2, -LARGEST_SHARE, LARGEST_SHARE]
_SHARE_AFTER = np.int32(np.clip(_STEPS, 0, LARGEST_SHARE))  # [S, K], of each share and verb

# what an agent without a will of its own may do: hold, keep the share, stay or become NORMAL
NEUTRAL: tuple[tuple[int, ...], ...] = ((HOLD,), (HOLD,), (HOLD, 1 + NORMAL))
# reward terms beside the shared change of equity, by the agent that receives them
TERMS: dict[str, str] = {"drawdown": "portfolio_manager", "stance": "regime_detector"}
RANDOM_BITS = 3
RULE_SIGNALS = 1


class Controls(struct.PyTreeNode):
    """What the team has decided so far."""

    desired: Array  # i32, D, contracts
    share: Array  # i32, s, index into SHARES
    stance: Array  # i32, index into STANCES
    cap: Array  # i32, C, contracts; UNKNOWN before the first decision


def initial(params: EnvParams) -> Controls:
    """Return the controls at the start: nothing desired, a tenth of volatility, NORMAL."""
    zero = jnp.zeros_like(params.max_contracts)
    return Controls(zero, zero + START_SHARE, zero + NORMAL, zero + UNKNOWN)


def random(bits: Array, bounds: Bounds, params: EnvParams) -> tuple[Array, Controls]:
    """Draw controls from their whole legal range, and a position that they admit.

    Args:
        bits: [RANDOM_BITS] u32 random bits.
        bounds: of a flat account.
        params: of the environment.
    """
    zero = jnp.zeros_like(params.max_contracts)
    share = uniform(bits[0], zero, zero + LARGEST_SHARE)
    stance = uniform(bits[1], zero, zero + len(STANCES) - 1)
    cap = fresh_cap(share, bounds, params)
    # what BEAR_TREND and BULL_TREND would not let grow may have been there before
    sized = jnp.where((stance == CRISIS) | (stance == VOLATILE), stance, NORMAL)
    position = uniform(bits[2], *_admitted(zero, cap, sized, bounds, params))
    return position, Controls(position, share, stance, cap)


def signal_names(minutes: int) -> tuple[str, ...]:
    """Return what is read beside the observed, see `stances.VOLATILITY`, `RETURN`, `REGIME`."""
    length = VOLATILITY_SESSIONS * SESSION_MINUTES // minutes
    return f"annual_volatility_{length}", "seasonal_return", labelling(minutes)


def fit_law(signals: np.ndarray, train: tuple[int, int], minutes: int) -> stances.Law:
    """Return what each stance says of the next bar, by [T, M] f64 signals of training bars."""
    young = unlabelled(REGIME_WINDOW[minutes], len(signals))
    return stances.fit(signals, train, young)


def moves(desired: Array, params: EnvParams) -> Array:
    """Return [K] i32, the desired position after each verb of the strategic agent, unclipped."""
    small, large, sign = params.lots_small, params.lots_large, jnp.sign(desired)
    halves = sign * (jnp.abs(desired) // 2) - desired
    return desired + jnp.stack([jnp.zeros_like(small), small, large, -small, -large, halves, sign])


def shares(share: Array) -> Array:
    """Return [K] i32, the share's index after each verb of the portfolio manager."""
    return jnp.asarray(_SHARE_AFTER)[share]


def fresh_cap(share: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Return C = clip(⌊s · equity / (notional · σ)⌋, 0, max), contracts."""
    volatility = jnp.maximum(bounds.signals[stances.VOLATILITY], 1e-6)
    cap = jnp.floor(jnp.asarray(_SHARES)[share] * bounds.unit / volatility)
    return jnp.int32(jnp.clip(cap, 0, jnp.float32(params.max_contracts)))


def _cap(controls: Controls, share: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Return the cap under a share: recomputed where that is new, or the session."""
    due = bounds.opens | (share != controls.share) | (controls.cap == UNKNOWN)
    return jnp.where(due, fresh_cap(share, bounds, params), controls.cap)


def _admitted(
    position: Array, cap: Array, stance: Array, bounds: Bounds, params: EnvParams
) -> tuple[Array, Array]:
    """Return the lowest and the highest position that cap, stance and account admit."""
    cap = jnp.where(stance == CRISIS, cap // 4, jnp.where(stance == VOLATILE, cap // 2, cap))
    high = jnp.minimum(jnp.minimum(cap, bounds.high), bounds.most)
    low = jnp.maximum(jnp.where(params.allow_short, -cap, 0), bounds.low)
    low = jnp.maximum(low, bounds.least)
    high = jnp.where(stance == BEAR_TREND, jnp.minimum(high, jnp.maximum(position, 0)), high)
    low = jnp.where(stance == BULL_TREND, jnp.maximum(low, jnp.minimum(position, 0)), low)
    return low, high


def compose(state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Order:
    """Turn the three decisions into one order.

    Args:
        state: at the decision.
        actions: [3] i32, in the order of AGENTS.
        bounds: of account and market.
        params: of the environment.
    """
    controls, position = state.controls, state.position
    strategic, manager, detector = actions
    share = jnp.int32(shares(controls.share)[manager])
    cap = _cap(controls, share, bounds, params)
    stance = jnp.where(detector == HOLD, controls.stance, detector - 1)
    low, high = _admitted(position, cap, stance, bounds, params)
    desired = jnp.clip(jnp.int32(moves(controls.desired, params)[strategic]), low, high)
    desired = jnp.where(bounds.flat, 0, desired)
    trade = desired - position
    return Order(trade=trade, wanted=trade, controls=Controls(desired, share, stance, cap))


def masks(state: State, bounds: Bounds, params: EnvParams) -> Array:
    """Return [3, K] bool: which actions could have an effect, whatever the others choose.

    Lower caps and other stances only cut what the largest cap admits under NORMAL, so that one
    decides about D.
    """
    controls, position = state.controls, state.position
    cap = _cap(controls, controls.share, bounds, params)
    # of the caps that another share would bring, that of the largest
    other = jnp.int32(jnp.where(controls.share == LARGEST_SHARE, LARGEST_SHARE - 1, LARGEST_SHARE))
    cap = jnp.maximum(cap, fresh_cap(other, bounds, params))
    low, high = _admitted(position, cap, jnp.int32(NORMAL), bounds, params)
    desired = jnp.clip(moves(controls.desired, params), low, high)
    strategic = (desired != desired[HOLD]) & jnp.logical_not(bounds.flat)
    manager = shares(controls.share) != controls.share
    detector = controls.stance + 1 != _VERBS
    return jnp.stack([strategic, manager, detector]) | _HOLDS


def role_values(state: State, params: EnvParams) -> Array:
    """Return [3] f32, what each agent sees of its own control, as a share of its range."""
    controls = state.controls
    values = jnp.float32(jnp.stack([controls.desired, controls.share, controls.stance]))
    most = jnp.float32(params.max_contracts)
    return values / jnp.stack([most, jnp.float32(LARGEST_SHARE), jnp.float32(len(STANCES) - 1)])


def stopped(controls: Controls) -> Controls:
    """Return the controls after a stop: what is desired is what is held, nothing."""
    return controls.replace(desired=jnp.zeros_like(controls.desired))


def neutral(state: State, actions: Array, bounds: Bounds, params: EnvParams) -> Array:
    """Return [3] i32, what each agent would do without a will of its own, the others given.

    Nothing more is desired, the share stays where it began, the stance is NORMAL.

    Args:
        state: at the decision.
        actions: [3] i32, what the team decided.
        bounds: of account and market.
        params: of the environment.
    """
    del bounds, params
    normal = jnp.where(state.controls.stance == NORMAL, HOLD, 1 + NORMAL)
    return jnp.zeros_like(actions).at[2].set(normal)


def follow(state: State, target: Array, work: Array, params: EnvParams) -> Array:
    """Return [3] i32 actions that lead the position to `target` contracts as fast as verbs can.

    Oracles act through this, so that lots, delay, limits, caps and costs are the team's.

    Args:
        state: at the decision.
        target: contracts.
        work: ignored: an order is traded whole.
        params: of the environment.
    """
    del work
    controls = state.controls
    # the verb that comes nearest; halving can be faster than a lot
    strategic = jnp.abs(moves(controls.desired, params) - target).argmin()
    manager = jnp.where(controls.share < LARGEST_SHARE, INCREASE_RISK, HOLD)
    detector = jnp.where(controls.stance == NORMAL, HOLD, 1 + NORMAL)
    return jnp.int32(jnp.stack([strategic, manager, detector]))
