"""The readers of the features' language: `Batch`, `Stream` and `Warmup` (see `ops.py`).

What remembers more than a window is one Python function that Batch and Stream both run.
"""
# ruff: noqa: D102 - the readers' methods are described once, in Ops

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from gm_jax.market.calendar import minute_of_session
from gm_jax.market.ops import NAN, Ops, Value, block


FADE = 7  # time constants until a recursive mean has forgotten its seed: e^-7 < 1/1000
DAY = 24 * 60  # minutes


def recursion(
    values: Iterable[float], slot: list[float], n: int, weight: float, delay: int
) -> list[float]:
    """Run `Ops.smooth` over values; `slot` = [values seen, mean], updated."""
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
            mean += (value - mean) / (seen - delay)  # the plain mean; a constant stays exact
        out.append(mean if seen >= seeded else NAN)
    slot[:] = seen, mean
    return out


def seasons(
    values: Iterable[float], minutes: Iterable[float], sums: list[float], counts: list[float]
) -> list[float]:
    """Run `Ops.season` over values; sums and counts [DAY + 1] by minute, then of all, updated."""
    out = []
    for value, now in zip(values, map(int, minutes), strict=True):
        known = sums[now] > 0
        out.append(sums[now] * counts[DAY] / (sums[DAY] * counts[now]) if known else 1.0)
        if value == value:  # not NaN
            for k in (now, DAY):
                sums[k] += value
                counts[k] += 1
    return out


def order_statistics(
    values: Iterable[float],
    past: list[float],
    ranked: list[float],
    n: int,
    percents: Sequence[int],
) -> list[list[float]]:
    """Run `Ops.percentiles` over values; `past` in order of time and `ranked`, both updated."""
    ranks = [p * (n - 1) // 100 for p in percents]
    unknown, out = [NAN] * len(ranks), []
    for value in values:
        full = len(past) == n
        out.append([ranked[k] for k in ranks] if full else unknown)
        if value != value:  # NaN: nothing to rank
            continue
        if full:
            del ranked[bisect_left(ranked, past.pop(0))]
        past.append(value)
        insort(ranked, value)
    return out


class BarArrays(Protocol):
    """What features read of bars: arrays [T], and the length of a bar."""

    @property
    def time(self) -> np.ndarray: ...  # ns since 1970 UTC, bar open
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
    @property
    def minutes(self) -> int: ...


class Batch(Ops):
    """All bars at once: every value is an array [T] f64.

    What `Stream` would remember after the last bar is left in `slots`, so that it can go on.
    """

    def __init__(self, bars: BarArrays) -> None:
        super().__init__()
        self.slots: list[list[float]] = []
        self._time, self.bar_minutes = bars.time, bars.minutes
        columns = (bars.open, bars.high, bars.low, bars.close, bars.volume)
        self.load([np.asarray(c, np.float64) for c in columns], np.asarray(bars.roll, np.bool_))

    @cached_property
    def minute(self) -> Value:  # time zones take long, and few features ask
        return minute_of_session(self._time).astype(np.float64)

    def _slot(self, start: list[float]) -> list[float]:
        self.slots.append(start)
        return start

    def lag(self, a: Value, n: int) -> Value:
        return self.window(a, n + 1)[0]

    def window(self, a: Value, n: int) -> Sequence[Value]:
        padded = np.concatenate([np.full(n, NAN), a])
        self._slot(padded[-n:].tolist())
        return [padded[1 + k : 1 + k + len(a)] for k in range(n)]

    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        return np.array(recursion(a.tolist(), self._slot([0, 0.0]), n, weight, delay))

    def season(self, a: Value) -> Value:
        memory = (self._slot([0.0] * (DAY + 1)) for _ in range(2))
        return np.array(seasons(a.tolist(), self.minute.tolist(), *memory))

    def percentiles(self, a: Value, n: int, percents: Sequence[int]) -> Sequence[Value]:
        rows = order_statistics(a.tolist(), self._slot([]), self._slot([]), n, percents)
        return list(np.array(rows).reshape(len(a), len(percents)).T)

    def product(self, a: Value) -> Value:
        running = np.cumprod(a)
        self._slot([float(running[-1])] if len(running) else [1.0])
        return running

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

    def __init__(self, bar_minutes: int) -> None:
        super().__init__()
        self.bar_minutes = bar_minutes
        self.slots: list[list[float]] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0
        self._known.clear()

    def _slot(self, start: Callable[[], list[float]]) -> list[float]:
        if self._next == len(self.slots):
            self.slots.append(start())
        self._next += 1
        return self.slots[self._next - 1]

    def lag(self, a: Value, n: int) -> Value:
        return self.window(a, n + 1)[0]

    def window(self, a: Value, n: int) -> Sequence[Value]:
        at, self._next = self._next, self._next + 1
        if at == len(self.slots):
            self.slots.append([NAN] * n)
        values = self.slots[at]
        del values[0]
        values.append(a)
        return values

    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        return recursion([a], self._slot(lambda: [0, 0.0]), n, weight, delay)[0]

    def season(self, a: Value) -> Value:
        sums, counts = (self._slot(lambda: [0.0] * (DAY + 1)) for _ in range(2))
        return seasons([a], [self.minute], sums, counts)[0]

    def percentiles(self, a: Value, n: int, percents: Sequence[int]) -> Sequence[Value]:
        return order_statistics([a], self._slot(list), self._slot(list), n, percents)[0]

    def product(self, a: Value) -> Value:
        slot = self._slot(lambda: [1.0])
        slot[0] *= a
        return slot[0]

    # The same additions in the same order as Ops, as plain loops: twice as quick.

    def sum(self, a: Value, n: int) -> Value:
        values = iter(self.window(a, n))
        added = next(values)
        for v in values:
            added += v
        return added

    def mean(self, a: Value, n: int) -> Value:
        moved = 0.0
        for v in self.window(a, n):
            moved += v - a
        return a + moved / n

    def long_mean(self, a: Value, n: int) -> Value:
        size = block(n)
        newest = self.sum(a, size)
        added, blocks = 0.0, 1
        for v in self.window(newest, n - size + 1)[:-1:size]:
            if v == v:  # not NaN
                added += v
                blocks += 1
        return (added + newest) / (blocks * size)

    def std(self, a: Value, n: int) -> Value:
        values = [v - a for v in self.window(a, n)]
        centre = 0.0
        for v in values:
            centre += v
        centre /= n
        square = 0.0
        for v in values:
            square += (v - centre) * (v - centre)
        return math.sqrt(square / n)

    def slope(self, a: Value, n: int) -> Value:
        middle, moment = (n - 1) / 2, 0.0
        for k, v in enumerate(self.window(a, n)):
            moment += (k - middle) * (v - a)
        return moment / (n * (n * n - 1) / 12 or 1.0)

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
    __gt__ = __ge__ = __lt__ = __le__ = __and__ = join


class Warmup(Ops):
    """No bars at all: every value is its `Age`. A recursive mean counts as usable after `FADE`."""

    def __init__(self) -> None:
        super().__init__()
        self.open = self.high = self.low = self.close = self.raw_close = Age(0)
        self.volume = self.factor = self.minute = Age(0)
        self.change = self.returns = self.true_range = Age(1)
        self.bar_minutes = 0

    def from_start(self, a: Value) -> Value:
        return Age(0)

    def lag(self, a: Value, n: int) -> Value:
        return Age(a.bars + n)

    def window(self, a: Value, n: int) -> Sequence[Value]:
        return [Age(a.bars + n - 1)] * n

    def smooth(self, a: Value, n: int, weight: float, delay: int = 0) -> Value:
        return Age(a.bars + delay + n - 1 + math.ceil(FADE / weight))

    def season(self, a: Value) -> Value:
        return Age(0)  # 1 is what it is while nothing is known

    def percentiles(self, a: Value, n: int, percents: Sequence[int]) -> Sequence[Value]:
        return [Age(a.bars + n)] * len(percents)

    def product(self, a: Value) -> Value:
        return a

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return Age(0).join(condition, a, b)

    def ratio(self, a: Value, b: Value) -> Value:
        return Age(0).join(a, b)

    def sqrt(self, a: Value) -> Value:
        return a
