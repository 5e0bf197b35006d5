"""An independent account of the tactical team: plain Python integers, one step at a time.

Written from the rules alone. Thresholds and impact are float32 by definition, so they use NumPy's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from gm_jax.settings import Settings


F = np.float32
COSTS = ("commission", "spread", "impact")
TRADED, REGULAR, SESSION_START, SESSION_END, ROLL, HOLE = (1 << i for i in range(6))


def clip(x: int, low: int, high: int) -> int:
    return max(low, min(x, high))


@dataclass
class Replay:
    """One account; `market` holds NumPy arrays."""

    settings: Settings
    bars: np.ndarray
    impact: np.ndarray
    atr: np.ndarray
    t: int
    position: int = 0
    desired: int = 0
    limit: int = 0
    stop: int = 0
    equity: int = 0
    peak: int = 0
    session_equity: int = 0
    halted: bool = False
    closing: bool = False
    closed: int = 0
    items: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.settings
        self.tick = round(s.tick_points * s.point_value_usd * 100)
        self.start = round(s.start_equity_usd * 100)
        self.moves = [0, s.lots_small, s.lots_large, -s.lots_small, -s.lots_large]

    # -- limits and composition ---------------------------------------------------------------

    def bounds(self) -> tuple[int, int, bool]:
        s, price = self.settings, int(self.bars[self.t, 3])
        cap = np.floor(F(s.max_leverage) * F(self.equity) / F(price * self.tick))
        cap = int(clip(cap, 0, s.max_contracts))
        low = -max(cap, -self.position) if s.allow_short else 0
        flat = self.halted or self.closing or self.closed != 0
        return low, max(cap, self.position), flat

    def compose(self, actions: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Return trade, wanted, desired, limit."""
        s = self.settings
        low, high, flat = self.bounds()
        tactical, risk, execution = (self.moves[a] for a in actions)
        limit = clip(self.limit + risk, 0, s.max_contracts)
        if flat:
            return -self.position, -self.position, 0, limit
        floor = max(-limit if s.allow_short else 0, low)
        desired = clip(self.desired + tactical, floor, min(limit, high))
        wanted = desired - self.position
        excess = abs(self.position) - limit if abs(self.position) > limit else 0
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

    def step(self, actions: tuple[int, int, int]) -> None:
        s = self.settings
        trade, _, self.desired, self.limit = self.compose(actions)
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
