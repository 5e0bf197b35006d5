"""One language for features, three readers: a whole file, one bar at a time, and the warm-up.

A feature is a function of an `Ops` object `x`. `Batch` reads it with arrays [T], `Stream` with
floats and a little memory, `Warmup` with the number of bars each value needs (`readers.py`). Batch
and Stream use + − × ÷ √ and comparisons in the same order and therefore give the same bits on every
machine. NaN stands for a value that does not exist yet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal
from functools import cache, reduce
from operator import add
from typing import Any, TypeAlias


Value: TypeAlias = Any  # array [T] f64 in Batch, float in Stream, Age in Warmup

NAN = math.nan


def total(values: Iterable[Value]) -> Value:
    """Add from the first to the last; the built-in `sum` rounds differently since Python 3.12."""
    return reduce(add, values)


def half_life_weight(bars: int) -> float:
    """Return 1 − 2^(−1 / bars), the weight of an exponential mean that halves in so many bars."""
    # A power of floats comes from the machine's C library; decimals are the same everywhere.
    exact = Context(prec=40)
    halving = exact.power(Decimal(2), exact.divide(Decimal(-1), Decimal(bars)))
    return float(exact.subtract(Decimal(1), halving))


@cache
def block(n: int) -> int:
    """Return the largest divisor of n that is not above √n."""
    return next(size for size in range(math.isqrt(n), 0, -1) if n % size == 0)


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
    minute: Value  # of the bar's open, since 18:00 New York, 0..1439
    bar_minutes: int  # length of a bar

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Value] = {}

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

    def once(self, definition: Callable[..., Value], *lengths: int) -> Value:
        """Evaluate a definition that several features share, once for all of them."""
        key = (definition, *lengths)
        if key not in self._known:
            self._known[key] = definition(self, *lengths)
        return self._known[key]

    def from_start(self, a: Value) -> Value:
        """Return `a`, whose value is meant from the first bar on: it needs no warm-up."""
        return a

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
    def season(self, a: Value) -> Value:
        """Return the mean of `a` ≥ 0 at this minute of the day over its mean at any time.

        Both are taken over all bars before this one; 1 while the first is unknown or 0.
        """

    @abstractmethod
    def percentiles(self, a: Value, n: int, percents: Sequence[int]) -> Sequence[Value]:
        """Return percentiles of the n values before this one.

        The p-th is the value of rank ⌊p (n − 1) / 100⌋, counted from 0: no interpolation.
        """

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

    def absolute(self, a: Value) -> Value:
        """Return the value without its sign."""
        return self.maximum(a, 0.0 - a)

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

    def block_sums(self, a: Value, n: int) -> Sequence[Value]:
        """Add the last n values in blocks of `block(n)`, oldest first.

        A bar costs one block's additions and a look at each block's sum: 2√n, not n. Together they
        are the window of n values; a block older than the series is NaN, and none but the newest
        asks for warm-up.
        """
        size = block(n)
        newest = self.sum(a, size)
        *older, _ = self.window(newest, n - size + 1)[::size]
        return [*map(self.from_start, older), newest]

    def long_mean(self, a: Value, n: int) -> Value:
        """Average the last n values; while there are fewer, the whole blocks of them there are."""
        *older, newest = self.block_sums(a, n)
        known = [(v == v, v) for v in older]  # not NaN
        added = total([*(self.where(is_known, v, 0.0) for is_known, v in known), newest])
        blocks = total([*(self.where(is_known, 1.0, 0.0) for is_known, _ in known), 1.0])
        return added / (blocks * block(n))

    def mean(self, a: Value, n: int) -> Value:
        """Average the last n values."""
        return a + total(v - a for v in self.window(a, n)) / n

    def std(self, a: Value, n: int) -> Value:
        """Return the population standard deviation of the last n values."""
        values = self.window(a, n)
        centre = total(v - a for v in values) / n
        return self.sqrt(total((v - a - centre) * (v - a - centre) for v in values) / n)

    def correlation(self, a: Value, b: Value, n: int) -> Value:
        """Return Pearson's correlation of the last n pairs; 0 where one of them is constant."""
        ours, theirs = self.window(a, n), self.window(b, n)
        here, there = total(v - a for v in ours) / n, total(v - b for v in theirs) / n
        pairs = zip(ours, theirs, strict=True)
        covariance = total((v - a - here) * (w - b - there) for v, w in pairs) / n
        return self.ratio(covariance, self.std(a, n) * self.std(b, n))

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
