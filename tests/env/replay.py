"""An independent account of each team: plain Python integers, one step at a time.

Written from the rules alone. Thresholds, caps and impact are float32 by definition, so they use
NumPy's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gm_jax.settings import Settings


F = np.float32
COSTS = ("commission", "spread", "impact")
TRADED, REGULAR, SESSION_START, SESSION_END, ROLL, HOLE = (1 << i for i in range(6))


def clip(x: int, low: int, high: int) -> int:
    return max(low, min(x, high))


@dataclass
class Account:
    """One account without a team; `bars`, `impact`, `atr`, `mandates` and `signals` are NumPy's."""

    settings: Settings
    bars: np.ndarray
    impact: np.ndarray
    atr: np.ndarray
    t: int
    mandates: np.ndarray | None = None  # [T, 2] shares of the maximum
    signals: np.ndarray | None = None  # [T, M]
    position: int = 0
    desired: int = 0
    stop: int = 0
    equity: int = 0
    peak: int = 0
    session_equity: int = 0
    halted: bool = False
    closing: bool = False
    closed: int = 0
    items: dict = field(default_factory=dict)

    CONTROLS = ("desired",)

    def __post_init__(self) -> None:
        s = self.settings
        self.tick = round(s.tick_points * s.point_value_usd * 100)
        self.start = round(s.start_equity_usd * 100)
        self.moves = [0, s.lots_small, s.lots_large, -s.lots_small, -s.lots_large]

    @property
    def controls(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in self.CONTROLS)

    def compose(self, actions: Sequence[int]) -> tuple[int, ...]:
        """Return trade, wanted and the controls."""
        raise NotImplementedError

    def notional(self) -> np.float32:
        return F(int(self.bars[self.t, 3]) * self.tick)

    def bounds(self) -> tuple[int, int, bool]:
        s = self.settings
        cap = np.floor(F(s.max_leverage) * F(self.equity) / self.notional())
        cap = int(clip(cap, 0, s.max_contracts))
        low = -max(cap, -self.position) if s.allow_short else 0
        flat = self.halted or self.closing or self.closed != 0
        return low, max(cap, self.position), flat

    def mandate(self) -> tuple[int, int]:
        """Return the positions that may be kept, lowest and highest."""
        shares = (-1, 1) if self.mandates is None else self.mandates[self.t].tolist()
        most = self.settings.max_contracts
        least, most = (math.floor(abs(share) * most + 1e-3) for share in shares)
        return -least if self.settings.allow_short else 0, most

    # -- money --------------------------------------------------------------------------------

    def pay(self, contracts: int, spread_ticks: int, coefficient: np.float32) -> None:
        q = abs(contracts)
        impact = F(F(self.settings.impact * self.tick) * coefficient) * F(F(q) * np.sqrt(F(q)))
        self.items["commission"] += q * round(self.settings.commission_usd * 100)
        self.items["spread"] += -(-q * spread_ticks * self.tick // 2)
        self.items["impact"] += int(np.ceil(impact))

    def stop_at(self, fill: int, atr: np.float32) -> int:
        if self.settings.stop_atr <= 0:
            return 0
        distance = max(int(np.rint(F(self.settings.stop_atr) * atr)), 1)
        return fill - distance if self.position > 0 else fill + distance

    def step(self, actions: Sequence[int]) -> None:
        s = self.settings
        trade, _, *controls = self.compose(actions)
        for name, value in zip(self.CONTROLS, controls, strict=True):
            setattr(self, name, value)
        coefficient, atr = self.impact[self.t], self.atr[self.t]
        before = int(self.bars[self.t, 3])
        self.t += 1
        open_, high, low, close, _, flags = map(int, self.bars[self.t])
        spread = s.spread_ticks_regular if flags & REGULAR else s.spread_ticks_other
        self.items = dict.fromkeys(("gross", "commission", "spread", "impact", "roll_cost"), 0)
        stopped = False
        if flags & SESSION_START:
            self.session_equity = self.equity
            self.closing, self.halted = self.closing or self.halted, False
        held = self.position
        if flags & ROLL:
            if self.stop:
                self.stop += open_ - before
        else:
            self.items["gross"] += self.position * (open_ - before) * self.tick

        if self.stop and flags & TRADED and self.beyond(open_):
            self.pay(self.position, spread, coefficient)
            self.position = self.stop = 0
            stopped = True
        elif flags & TRADED and not flags & HOLE:
            self.pay(trade, spread, coefficient)
            self.position += trade
            if abs(self.position) > abs(held) or self.position * held < 0:
                self.stop = self.stop_at(open_, atr)
        if self.position == 0:
            self.stop = 0
        if flags & ROLL and self.position * held > 0:
            before_roll = sum(self.items[k] for k in COSTS)
            for _ in range(2):
                self.pay(min(abs(held), abs(self.position)), spread, coefficient)
            self.items["roll_cost"] = sum(self.items[k] for k in COSTS) - before_roll
        if self.stop and flags & TRADED and self.beyond(low if self.position > 0 else high):
            self.items["gross"] += self.position * (self.stop - open_) * self.tick
            self.pay(self.position, spread, coefficient)
            self.position = self.stop = 0
            stopped = True
        else:
            self.items["gross"] += self.position * (close - open_) * self.tick
        if stopped:
            self.desired = 0
        self.closing = self.closing and self.position != 0
        costs = sum(self.items[k] for k in COSTS)
        self.equity += self.items["gross"] - costs
        self.peak = max(self.peak, self.equity)
        self.check_limits(close)

    def beyond(self, price: int) -> bool:
        return price <= self.stop if self.position > 0 else price >= self.stop

    def check_limits(self, price: int) -> None:
        s, equity = self.settings, F(self.equity)
        if equity < F(self.session_equity) * (F(1) - F(s.daily_loss)):
            self.halted = True
        if self.closed:
            return
        if equity <= F(self.start) * F(s.ruin):
            self.closed = 2
        elif equity < F(s.maintenance_margin) * F(abs(self.position) * price * self.tick):
            self.closed = 3
        elif equity < F(self.peak) * (F(1) - F(s.max_drawdown)):
            self.closed = 1


@dataclass
class Tactical(Account):
    """Direction, limit and execution."""

    limit: int = 0

    CONTROLS = ("desired", "limit")

    def compose(self, actions: Sequence[int]) -> tuple[int, ...]:
        """Return trade, wanted, desired, limit."""
        s = self.settings
        low, high, flat = self.bounds()
        least, most = self.mandate()
        tactical, risk, execution = (self.moves[a] for a in actions)
        limit = clip(self.limit + risk, 0, s.max_contracts)
        if flat:
            return -self.position, -self.position, 0, limit
        floor = max(-limit if s.allow_short else 0, low, least)
        desired = clip(self.desired + tactical, floor, min(limit, high, most))
        wanted = desired - self.position
        kept = clip(self.position, max(-limit, least), min(limit, most))
        excess = abs(kept - self.position)
        size = 0
        if execution * wanted > 0:
            size = 1 if actions[2] in (1, 3) else abs(wanted)
        size = max(size, excess)
        return (size if wanted > 0 else -size), wanted, desired, limit

    def masks(self) -> np.ndarray:
        """Return [3, 5] legality by trying everything.

        An action is legal if, for some legal choice of the others, it changes what HOLD leads to.
        """
        legal = np.zeros((3, 5), dtype=bool)
        legal[:, 0] = True
        limits = [clip(self.limit + m, 0, self.settings.max_contracts) for m in self.moves]
        legal[1] |= [x != self.limit for x in limits]
        risks = np.flatnonzero(legal[1])
        for risk, action in itertools.product(risks, range(1, 5)):
            hold, other = (self.compose((a, risk, 0))[2] for a in (0, action))
            legal[0, action] |= hold != other
        for tactical, risk, action in itertools.product(np.flatnonzero(legal[0]), risks, range(5)):
            hold, other = (self.compose((tactical, risk, a))[0] for a in (0, action))
            legal[2, action] |= hold != other
        return legal


# ids of the strategic team's verbs, stances and shares, as the rules name them
REDUCE_RISK, INCREASE_RISK = 5, 6
NORMAL, BULL_TREND, BEAR_TREND, CRISIS, VOLATILE, CONSOLIDATION = range(6)
SHARES = (0.05, 0.10, 0.15, 0.20, 0.25)
SHARE_MOVES = (0, 1, 2, -1, -2, -4, 4)
UNKNOWN = -1


@dataclass
class Strategic(Account):
    """Direction, risk budget and stance."""

    share: int = 1
    stance: int = NORMAL
    cap: int = UNKNOWN

    CONTROLS = ("desired", "share", "stance", "cap")

    def opens(self) -> bool:
        """Return whether the decision is the first of its session."""
        return bool(self.bars[self.t, 5] & SESSION_START)

    def unit(self) -> np.float32:
        """Return the contracts that the equity buys without leverage."""
        return F(self.equity) / self.notional()

    def sigma(self) -> np.float32:
        """Return the annualised volatility known at the decision."""
        return F(self.signals[self.t, 0])

    def risk_cap(self, share: int) -> int:
        contracts = F(SHARES[share]) * self.unit() / max(self.sigma(), F(1e-6))
        return int(clip(np.floor(contracts), 0, self.settings.max_contracts))

    def moved(self, verb: int) -> int:
        """Return D after the strategic agent's verb, before anything cuts it."""
        size = abs(self.desired)
        sign = (self.desired > 0) - (self.desired < 0)
        if verb == REDUCE_RISK:
            return sign * (size // 2)
        if verb == INCREASE_RISK:
            return sign * (size + 1) if size else 0
        return self.desired + self.moves[verb]

    def compose(self, actions: Sequence[int]) -> tuple[int, ...]:
        """Return trade, wanted, desired, share, stance, cap."""
        strategic, manager, detector = actions
        p, (low, high, flat), (least, most) = self.position, self.bounds(), self.mandate()
        share = clip(self.share + SHARE_MOVES[manager], 0, len(SHARES) - 1)
        fresh = share != self.share or self.opens() or self.cap == UNKNOWN
        cap = self.risk_cap(share) if fresh else self.cap
        stance = self.stance if detector == 0 else detector - 1
        if flat:
            return -p, -p, 0, share, stance, cap
        used = cap // {CRISIS: 4, VOLATILE: 2}.get(stance, 1)
        low = max(low, least, -used if self.settings.allow_short else 0)
        high = min(high, most, used)
        if stance == BEAR_TREND:
            high = min(high, max(p, 0))
        if stance == BULL_TREND:
            low = max(low, min(p, 0))
        desired = clip(self.moved(strategic), low, high)
        return desired - p, desired - p, desired, share, stance, cap

    def masks(self) -> np.ndarray:
        """Return [3, 7] legality by trying all 343 decisions.

        What is HOLD by another name for all choices of the others is so for the legal ones, and
        the other way round: an illegal choice of the others is itself HOLD by another name.
        """
        shape = (7, 7, 7)
        outcomes = np.array([self.compose(a) for a in np.ndindex(shape)]).reshape(*shape, -1)
        legal = []
        for agent in range(3):
            differs = (outcomes != outcomes.take([0], axis=agent)).any(-1)
            legal.append(differs.any(axis=tuple({0, 1, 2} - {agent})))
        legal = np.stack(legal)
        legal[:, 0] = True
        return legal


TEAMS = {"tactical": Tactical, "strategic": Strategic}
