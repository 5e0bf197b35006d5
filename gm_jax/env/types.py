"""The simulator's nouns.

Letters: T bars, F features, M signals, A agents, K actions, O and G inputs.

Money is int32 cents, prices are int32 ticks, positions are whole contracts (below 0: short).
"""

from __future__ import annotations

from typing import Any

import jax
from flax import struct


Array = jax.Array

# columns of Market.bars
OPEN, HIGH, LOW, CLOSE, GAP, FLAGS = range(6)
# bits of Market.bars[:, FLAGS]
TRADED, REGULAR, SESSION_START, SESSION_END, ROLL, HOLE = (1 << i for i in range(6))
# values of State.closed
OPEN_ACCOUNT, DRAWDOWN, RUIN, MARGIN_CALL = range(4)


class Market(struct.PyTreeNode):
    """Bars on the device; an argument of every program, never a constant in it."""

    bars: Array  # [T, 6] i32: open, high, low, close, gap = open − previous close (ticks), flags
    features: Array  # [T, F] f32, known at the bar's close, unscaled
    impact: Array  # [T] f32, ticks: σ20 · √(price / mean notional20), known at the bar's close
    atr: Array  # [T] f32, ticks: ATR14, known at the bar's close
    signals: Array  # [T, M] f32, what the team reads beside features, see its `signal_names`
    mandate: Array  # [T, 2] f32, least and most position admitted, shares of the maximum
    starts: Array  # [T] i32, first bars of training windows, padded
    num_starts: Array  # [] i32, how many of `starts` count
    mean: Array  # [F] f32, scaler fitted on the training split
    scale: Array  # [F] f32
    law: Any  # of the team, fitted on the training split, see its `fit_law`; None without one


class EnvParams(struct.PyTreeNode):
    """Every number of the simulator that may be swept without recompiling; all scalars."""

    tick_cents: Array  # i32, value of a tick of one contract
    commission: Array  # i32, cents per contract and side
    spread_regular: Array  # i32, ticks, 09:30-16:00 New York
    spread_other: Array  # i32, ticks
    impact: Array  # f32, Y · tick_cents
    start_equity: Array  # i32, cents
    lots_small: Array  # i32
    lots_large: Array  # i32
    max_contracts: Array  # i32
    allow_short: Array  # bool
    random_start: Array  # bool
    episode_length: Array  # i32, bars
    max_leverage: Array  # f32
    daily_loss: Array  # f32
    max_drawdown: Array  # f32
    ruin: Array  # f32
    maintenance_margin: Array  # f32
    stop_atr: Array  # f32
    reward_weights: dict[str, Array]  # f32, by term
    risk_aversion: Array  # f32


class State(struct.PyTreeNode):
    """One account and its team's controls at the close of bar t."""

    t: Array  # i32, last closed bar
    steps: Array  # i32, since the window's start
    position: Array  # i32, contracts
    controls: Any  # of the team, see tactical.py and strategic.py
    stop: Array  # i32, ticks, price of the stop; 0 = none
    equity: Array  # i32, cents
    peak: Array  # i32, cents, highest equity so far
    session_equity: Array  # i32, cents, at the open of the running session
    halted: Array  # bool, the daily loss limit was hit in this session
    closing: Array  # bool, a halt of an earlier session has not found its fill yet
    closed: Array  # i32, why the account takes no more risk; 0 = it does


class Bounds(struct.PyTreeNode):
    """What account and market admit at a decision, before any agent is asked."""

    low: Array  # i32, lowest position that may be newly taken
    high: Array  # i32, highest
    least: Array  # i32, lowest position that may be kept, at most 0
    most: Array  # i32, highest, at least 0
    flat: Array  # bool, the position must be closed
    unit: Array  # f32, contracts whose notional is the account's equity
    opens: Array  # bool, bar t opened the session
    signals: Array  # [M] f32, of Market, at bar t


class Order(struct.PyTreeNode):
    """What the team's three decisions come to."""

    trade: Array  # i32, contracts to trade at the next open
    wanted: Array  # i32, contracts between the desired and the present position
    controls: Any


class Fill(struct.PyTreeNode):
    """What the account did in one bar, each item in cents; costs are not negative."""

    traded: Array  # i32, contracts of the order that filled, signed
    gross: Array  # i32
    commission: Array  # i32
    spread: Array  # i32
    impact: Array  # i32
    order_cost: Array  # i32, of which for the team's order
    roll_cost: Array  # i32, of which for carrying a position over a roll
    stopped: Array  # bool

    @property
    def cost(self) -> Array:
        """All costs, cents."""
        return self.commission + self.spread + self.impact


class Outcome(struct.PyTreeNode):
    """What a step emits; received at the close of bar t + 1."""

    reward: Array  # [A] f32, bp of start equity
    terms: dict[str, Array]  # f32, the reward's terms before weighting, bp
    terminated: Array  # bool, no bootstrap
    truncated: Array  # bool, bootstrap at the real next state
    target: Array  # i32, contracts, the position that the order aimed at
    fill: Fill


class Observation(struct.PyTreeNode):
    """What the agents and the critic see at the close of bar t."""

    obs: Array  # [A, O] f32: features and the agent's role value
    global_obs: Array  # [G] f32: features, account, every role value
    mask: Array  # [A, K] bool, legal actions
