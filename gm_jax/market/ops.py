"""One language for features, three readers: a whole file, one bar at a time, and the warm-up.

A feature is a function of an `Ops` object `x`. `Batch` reads it with arrays [T], `Stream` with
floats and a little memory, `Warmup` with the number of bars each value needs. Batch and Stream use
+ − × ÷ √ and comparisons in the same order and therefore give the same bits on every machine. NaN
stands for a value that does not exist yet. NumPy only: an exported model carries this file.
"""
# ruff: noqa: D102 - the readers' methods are described once, in Ops

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol, TypeAlias

import numpy as np


Value: TypeAlias = Any  # array [T] f64 in Batch, float in Stream, Age in Warmup

NAN = math.nan
FADE = 7  # time constants until a recursive mean has forgotten its seed: e^-7 < 1/1000


def total(values: Iterable[Value]) -> Value:
    """Add from the first to the last; the built-in `sum` rounds differently since Python 3.12."""
    return reduce(add, values)


class Ops(ABC):
    """The series a feature may use and what it may do with them.

    Level series are ratio-adjusted at rolls, with known bars only: from a roll on they are
    multiplied by (previous close / open). Series of changes take the open in place of the previous
    close there, and stay in raw points.
    """

    open: Value  # adjusted points
    high: Value  # adjusted points
    low: Value  # adjusted points
    close: Value  # adjusted points
    volume: Value  # contracts
    raw_close: Value  # points as quoted
    factor: Value  # adjusted / quoted price
    change: Value  # close − previous close, quoted points
    returns: Value  # change / previous close
    true_range: Value  # span of the bar and the previous close, quoted points

    def load(self, quotes: Sequence[Value], roll: Value) -> None:
        """Set the series from (open, high, low, close, volume); `roll`: a new contract begins."""
        open, high, low, close, volume = quotes
        last = self.lag(close, 1)
        rolled = roll & (last == last)  # not NaN: before the first bar there is no gap
        previous = self.where(rolled, open, last)
        self.factor = self.product(self.where(rolled, self.ratio(last, open), 1.0))
        self.raw_close, self.volume = close, volume
        self.change = close - previous
        self.returns = self.ratio(self.change, previous)
        self.true_range = self.maximum(high, previous) - self.minimum(low, previous)
        self.open, self.high = open * self.factor, high * self.factor
        self.low, self.close = low * self.factor, close * self.factor

    @abstractmethod
    def lag(self, a: Value, n: int) -> Value:
        """Return `a` of n bars ago."""

    @abstractmethod
    def window(self, a: Value, n: int) -> Sequence[Value]:
        """Return the last n values of `a`, oldest first."""

    @abstractmethod
    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        """Return the recursion m += weight · (a − m), from the mean of n values after `delay`."""

    @abstractmethod
    def product(self, a: Value) -> Value:
        """Multiply everything up to this bar."""

    @abstractmethod
    def where(self, condition: Value, a: Value, b: Value) -> Value:
        """Choose `a` where the condition holds, else `b`."""

    @abstractmethod
    def ratio(self, a: Value, b: Value) -> Value:
        """Divide a by b; 0 where b is 0."""

    @abstractmethod
    def sqrt(self, a: Value) -> Value:
        """Take the square root."""

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the larger of two values; NaN where b is NaN."""
        return self.where(a > b, a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """Return the smaller of two values; NaN where b is NaN."""
        return self.where(a < b, a, b)

    def ema(self, a: Value, n: int, delay: int = 0) -> Value:
        """Average exponentially with weight 2 / (n + 1)."""
        return self.smooth(a, n, 2 / (n + 1), delay)

    def wilder(self, a: Value, n: int) -> Value:
        """Average exponentially with Wilder's weight 1 / n."""
        return self.smooth(a, n, 1 / n)

    # Windows are added afresh at every bar: no drift, and no trace of where the file begins.
    # Distances from the newest value keep a constant window exact: mean = a, deviation = 0.

    def sum(self, a: Value, n: int) -> Value:
        """Add the last n values."""
        return total(self.window(a, n))

    def mean(self, a: Value, n: int) -> Value:
        """Average the last n values."""
        return a + total(v - a for v in self.window(a, n)) / n

    def std(self, a: Value, n: int) -> Value:
        """Return the population standard deviation of the last n values."""
        values = self.window(a, n)
        centre = total(v - a for v in values) / n
        return self.sqrt(total((v - a - centre) * (v - a - centre) for v in values) / n)

    def slope(self, a: Value, n: int) -> Value:
        """Fit a line to the last n values by least squares; return its rise per bar."""
        steps = [k - (n - 1) / 2 for k in range(n)]
        moment = total(s * (v - a) for s, v in zip(steps, self.window(a, n), strict=True))
        return moment / (n * (n * n - 1) / 12 or 1.0)  # one bar has no slope: 0 / 1

    def highest(self, a: Value, n: int) -> Value:
        """Return the largest of the last n values."""
        return reduce(self.maximum, self.window(a, n))

    def lowest(self, a: Value, n: int) -> Value:
        """Return the smallest of the last n values."""
        return reduce(self.minimum, self.window(a, n))


def recursion(
    values: Iterable[float], slot: list[float], n: int, weight: float, delay: int
) -> list[float]:
    """Run `Ops.smooth` over values; `slot` = [values seen, mean (sum before the seed)], updated."""
    seen, mean = slot
    seeded, out = delay + n, []
    for value in values:
        if value != value:  # NaN: the series has not begun
            out.append(NAN)
            continue
        seen += 1
        if seen > seeded:
            mean += weight * (value - mean)
        elif seen > delay:
            mean += value
            if seen == seeded:
                mean /= n
        out.append(mean if seen >= seeded else NAN)
    slot[:] = seen, mean
    return out


class BarArrays(Protocol):
    """The columns of bars that features read: arrays [T]."""

    @property
    def open(self) -> np.ndarray: ...
    @property
    def high(self) -> np.ndarray: ...
    @property
    def low(self) -> np.ndarray: ...
    @property
    def close(self) -> np.ndarray: ...
    @property
    def volume(self) -> np.ndarray: ...
    @property
    def roll(self) -> np.ndarray: ...


class Batch(Ops):
    """All bars at once: every value is an array [T] f64."""

    def __init__(self, bars: BarArrays) -> None:
        columns = (bars.open, bars.high, bars.low, bars.close, bars.volume)
        self.load([np.asarray(c, np.float64) for c in columns], np.asarray(bars.roll, np.bool_))

    def lag(self, a: Value, n: int) -> Value:
        return np.concatenate([np.full(n, NAN), a])[: len(a)]

    def window(self, a: Value, n: int) -> Sequence[Value]:
        padded = np.concatenate([np.full(n - 1, NAN), a])
        return [padded[k : k + len(a)] for k in range(n)]

    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        return np.array(recursion(a.tolist(), [0, 0.0], n, weight, delay))

    def product(self, a: Value) -> Value:
        return np.cumprod(a)

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return np.where(condition, a, b)

    def ratio(self, a: Value, b: Value) -> Value:
        return np.divide(a, b, out=np.zeros_like(b), where=b != 0)

    def sqrt(self, a: Value) -> Value:
        return np.sqrt(a)


class Stream(Ops):
    """One bar at a time: every value is a float.

    Features run the same calls in the same order at every bar, so the k-th call that needs memory
    owns slot k. Call `rewind` and `load` first at each bar.
    """

    def __init__(self) -> None:
        self.slots: list[list[float]] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def _slot(self, start: Callable[[], list[float]]) -> list[float]:
        if self._next == len(self.slots):
            self.slots.append(start())
        self._next += 1
        return self.slots[self._next - 1]

    def lag(self, a: Value, n: int) -> Value:
        return self.window(a, n + 1)[0]

    def window(self, a: Value, n: int) -> Sequence[Value]:
        values = self._slot(lambda: [NAN] * n)
        del values[0]
        values.append(a)
        return values

    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        return recursion([a], self._slot(lambda: [0, 0.0]), n, weight, delay)[0]

    def product(self, a: Value) -> Value:
        slot = self._slot(lambda: [1.0])
        slot[0] *= a
        return slot[0]

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return a if condition else b

    def ratio(self, a: Value, b: Value) -> Value:
        return a / b if b != 0 else 0.0

    def sqrt(self, a: Value) -> Value:
        return math.sqrt(a)


@dataclass(frozen=True)
class Age:
    """How many bars must come before the first usable value."""

    bars: int

    def join(self, *others: object) -> Age:
        """Return the age of something computed from this and others; constants have none."""
        return Age(max(self.bars, *(o.bars for o in others if isinstance(o, Age)), 0))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = join
    __gt__ = __lt__ = join


class Warmup(Ops):
    """No bars at all: every value is its `Age`. A recursive mean counts as usable after `FADE`."""

    def __init__(self) -> None:
        self.open = self.high = self.low = self.close = self.raw_close = Age(0)
        self.volume = self.factor = Age(0)
        self.change = self.returns = self.true_range = Age(1)

    def lag(self, a: Value, n: int) -> Value:
        return Age(a.bars + n)

    def window(self, a: Value, n: int) -> Sequence[Value]:
        return [Age(a.bars + n - 1)] * n

    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        return Age(a.bars + delay + n - 1 + math.ceil(FADE / weight))

    def product(self, a: Value) -> Value:
        return a

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return Age(0).join(condition, a, b)

    def ratio(self, a: Value, b: Value) -> Value:
        return Age(0).join(a, b)

    def sqrt(self, a: Value) -> Value:
        return a
