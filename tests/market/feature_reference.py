"""Random bars, and every feature again as a slow loop over back-adjusted prices."""

import math
import statistics
from dataclasses import dataclass, fields

import numpy as np


@dataclass
class Quotes:
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    roll: np.ndarray

    def rows(self, rows):
        return Quotes(*(getattr(self, f.name)[rows] for f in fields(self)))

    def __iter__(self):
        return zip(*(getattr(self, f.name) for f in fields(self)), strict=True)


def make_bars(T, seed=0, roll_share=0.0, scale=15_000.0, still=0.0):
    """A random walk with some bars without volume; `still`: share of bars where nothing moves."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(0, 2e-3, T) * (rng.random(T) >= still)
    close = scale * np.exp(np.cumsum(moves))
    open_ = np.append(scale, close[:-1])
    top, bottom = rng.random((2, T)) * abs(moves)
    roll = rng.random(T) < roll_share
    gap = np.cumprod(np.where(roll, 1 + rng.normal(0, 0.01, T), 1))
    volume = np.floor(rng.lognormal(6, 1, T)) * (rng.random(T) > 0.05)
    high = np.maximum(open_, close) * (1 + top)
    low = np.minimum(open_, close) * (1 - bottom)
    return Quotes(open_ * gap, high * gap, low * gap, close * gap, volume, roll)


class Reference:
    """Prices are back-adjusted to the last contract; features do not see the scale."""

    def __init__(self, bars):
        o, h, low, c, v, roll = (list(column) for column in vars(bars).values())
        self.o, self.h, self.l, self.c, self.v, self.raw = o[:], h[:], low[:], c[:], v, c
        for t in range(1, len(c)):
            if roll[t]:
                for series in (self.o, self.h, self.l, self.c):
                    series[:t] = [p * (o[t] / c[t - 1]) for p in series[:t]]
        before = [math.nan] + [o[t] if roll[t] else c[t - 1] for t in range(1, len(c))]
        self.moves = [a - b for a, b in zip(c, before, strict=True)]
        self.spans = [
            max(hi - lo, abs(hi - b), abs(lo - b)) for hi, lo, b in zip(h, low, before, strict=True)
        ]

    def ret(self, t, n=1):
        return self.c[t] / self.c[t - n] - 1

    def last(self, series, t, n):
        return series[t - n + 1 : t + 1]

    def volume_line(self, t, n):
        v = self.last(self.v, t, n)
        return np.polyfit(range(n), v, 1)[0] * (n - 1) / statistics.mean(v)

    def share(self, t, n, better):
        return 2 * sum(better(k) for k in range(t - n + 1, t + 1)) / n - 1

    def averaged(self, series, t, n, first, weight):
        mean = statistics.fmean(series[first : first + n])
        for value in series[first + n : t + 1]:
            mean = mean * (1 - weight) + value * weight
        return mean

    def rsi(self, t, n):
        moves = [b - a for a, b in zip(self.c, self.c[1:], strict=False)]
        up = self.averaged([max(m, 0) for m in moves], t - 1, n, 0, 1 / n)
        down = self.averaged([max(-m, 0) for m in moves], t - 1, n, 0, 1 / n)
        return (100 - 100 / (1 + up / down)) / 50 - 1

    def macd(self, t, fast, slow, signal):
        lines = [
            self.averaged(self.c, k, fast, slow - fast, 2 / (fast + 1))
            - self.averaged(self.c, k, slow, 0, 2 / (slow + 1))
            for k in range(slow - 1, t + 1)
        ]
        mean = self.averaged(lines, len(lines) - 1, signal, 0, 2 / (signal + 1))
        return (lines[-1] - mean) / self.c[t]

    def channel(self, t, n):
        top, bottom = max(self.last(self.h, t, n)), min(self.last(self.l, t, n))
        return 2 * (self.c[t] - bottom) / (top - bottom) - 1

    def momentum(self, t, n):
        past = [self.ret(k) for k in range(t - 4 * n + 1, t + 1)]
        return sum(past[-n:]) / math.sqrt(n) / math.sqrt(statistics.fmean(r * r for r in past))


MEAN, STD = statistics.fmean, statistics.pstdev
REFERENCES = {
    "return": lambda r, t, n: r.ret(t, n),
    "volatility": lambda r, t, n: STD([r.ret(k) for k in range(t - n + 1, t + 1)]),
    "volume": lambda r, t, n: r.v[t] / MEAN(r.last(r.v, t, n)) - 1,
    "momentum": Reference.momentum,
    "rsi": Reference.rsi,
    "price_sma": lambda r, t, n: r.c[t] / MEAN(r.last(r.c, t, n)) - 1,
    "bollinger": lambda r, t, n: (r.c[t] - MEAN(r.last(r.c, t, n))) / (2 * STD(r.last(r.c, t, n))),
    "macd": Reference.macd,
    "volume_ratio": lambda r, t, n: MEAN(r.last(r.v, t, 5)) / MEAN(r.last(r.v, t, n)) - 1,
    "volume_trend": Reference.volume_line,
    "higher_highs": lambda r, t, n: r.share(t, n, lambda k: r.h[k] > r.h[k - 1]),
    "lower_lows": lambda r, t, n: r.share(t, n, lambda k: r.l[k] < r.l[k - 1]),
    "channel": Reference.channel,
    "atr": lambda r, t, n: r.averaged(r.spans, t, n, 1, 1 / n),
    "change_std": lambda r, t, n: STD(r.last(r.moves, t, n)),
    "mean_notional": lambda r, t, n: MEAN(
        v * c for v, c in zip(r.last(r.v, t, n), r.last(r.raw, t, n), strict=True)
    ),
}
