"""Random bars, and every feature again as a slow loop over back-adjusted prices."""

import math
import statistics
from dataclasses import dataclass, fields
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from gm_jax.market.calendar import minute_of_session
from gm_jax.market.regimes import REGIMES
from gm_jax.market.synthetic import clock


MINUTES = 5  # of a bar
NEW_YORK = ZoneInfo("America/New_York")


@dataclass
class Quotes:
    minutes = MINUTES

    time: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    roll: np.ndarray

    def rows(self, rows):
        return Quotes(*(getattr(self, f.name)[rows] for f in fields(self)))

    def __iter__(self):
        """Yield what a stream takes."""
        columns = [getattr(self, f.name) for f in fields(self)][1:]
        return zip(minute_of_session(self.time), *columns, strict=True)


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
    times = clock(T, MINUTES)[0]
    return Quotes(times, open_ * gap, high * gap, low * gap, close * gap, volume, roll)


class Reference:
    """Prices are back-adjusted to the last contract; features do not see the scale."""

    def __init__(self, bars):
        self.times, o, h, low, c, v, roll = (list(column) for column in vars(bars).values())
        self.labels, self.calms = {}, []
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
        lines = [self.line(k, fast, slow) for k in range(slow - 1, t + 1)]
        mean = self.averaged(lines, len(lines) - 1, signal, 0, 2 / (signal + 1))
        return (lines[-1] - mean) / self.c[t]

    def channel(self, t, n):
        top, bottom = max(self.last(self.h, t, n)), min(self.last(self.l, t, n))
        return 2 * (self.c[t] - bottom) / (top - bottom) - 1

    def momentum(self, t, n):
        past = [self.ret(k) for k in range(t - 4 * n + 1, t + 1)]
        return sum(past[-n:]) / math.sqrt(n) / math.sqrt(statistics.fmean(r * r for r in past))

    def atr_ratio(self, t, n):
        spans = [s * c / q for s, c, q in zip(self.spans, self.c, self.raw, strict=True)]
        return self.averaged(spans, t, n, 1, 1 / n) / self.c[t]

    def line(self, t, fast, slow):
        return self.averaged(self.c, t, fast, slow - fast, 2 / (fast + 1)) - self.averaged(
            self.c, t, slow, 0, 2 / (slow + 1)
        )

    def ewma_momentum(self, t, half_life):
        w = 1 - 0.5 ** (1 / half_life)
        returns = [self.ret(k) for k in range(1, t + 1)]
        mean = self.averaged(returns, t - 1, half_life, 0, w)
        square = self.averaged([r * r for r in returns], t - 1, half_life, 0, w)
        return mean / math.sqrt(square) * math.sqrt((2 - w) / w)

    def typical(self, t):
        return (self.h[t] + self.l[t] + self.c[t]) / 3

    def vwap(self, t, n):
        rows = range(t - n + 1, t + 1)
        usual = sum(self.typical(k) * self.v[k] for k in rows) / sum(self.v[k] for k in rows)
        return self.c[t] / usual - 1

    def money_flow(self, t, n):
        up = down = 0
        for k in range(t - n + 1, t + 1):
            if self.typical(k) > self.typical(k - 1):
                up += self.typical(k) * self.v[k]
            elif self.typical(k) < self.typical(k - 1):
                down += self.typical(k) * self.v[k]
        return (100 - 100 / (1 + up / down)) / 50 - 1

    def clock(self, t):
        return datetime.fromtimestamp(self.times[t] / 1e9, NEW_YORK)

    def minutes_left(self, t):
        """From the bar's close to the next 17:00 on the wall."""
        end = self.clock(t).replace(tzinfo=None) + timedelta(minutes=MINUTES)
        stop = end.replace(hour=17, minute=0)
        return ((stop if end <= stop else stop + timedelta(days=1)) - end).total_seconds() / 60

    def calm(self, t):
        """Return by the season of |return|, from all bars before."""
        if not self.calms:
            self.calms, self.seasons, before = [math.nan], [1.0], {}
            for k in range(1, len(self.c)):
                size, slot = abs(self.ret(k)), self.clock(k).time()
                here, ever = before.setdefault(slot, []), [a for s in before.values() for a in s]
                known = here and sum(here) > 0
                season = statistics.fmean(here) / statistics.fmean(ever) if known else 1
                self.seasons.append(season)
                self.calms.append(self.ret(k) / season)
                here.append(size)
        return self.calms[t]

    def annual_volatility(self, t, n):
        block = max(d for d in range(1, n + 1) if n % d == 0 and d * d <= n)
        used = [min(n, count // block * block) for count in (t, t + 1)]  # returns, seasons
        self.calm(t)
        squares = statistics.fmean(self.ret(k) ** 2 for k in range(t - used[0] + 1, t + 1))
        seasons = statistics.fmean(self.seasons[k] ** 2 for k in range(t - used[1] + 1, t + 1))
        return math.sqrt(squares / seasons * 252 * 23 * 60 / MINUTES)

    def label(self, t, n):
        if n not in self.labels:
            slots = [self.clock(k).time() for k in range(len(self.c))]
            self.labels[n] = regimes(np.array(self.c), slots, n)
        return self.labels[n][t]


def regimes(closes, slots, n, drift_of=lambda ratio: ratio - 1):
    """Return the regime's id of every bar, by pandas."""
    closes = pd.Series(closes)
    returns = closes.pct_change()
    size = returns.abs()
    usual = size.groupby(slots).transform(lambda s: s.expanding().mean().shift())
    season = usual / size.expanding().mean().shift()
    v = (returns / season.where(season > 0, 1)).rolling(20).std(ddof=0)
    drift = drift_of(closes.rolling(5).mean() / closes.rolling(20).mean())
    trend = drift.abs() / (returns.rolling(20).std(ddof=0) * math.sqrt(20))

    def before(series, share):
        return series.rolling(n).quantile(share, interpolation="lower").shift()

    rules = {
        "CRISIS": v > before(v, 0.97),
        "VOLATILE": v > before(v, 0.85),
        "BULL_TREND": (trend > before(trend, 0.7)) & (drift > 0),
        "BEAR_TREND": (trend > before(trend, 0.7)) & (drift < 0),
        "CONSOLIDATION": v < before(v, 0.3),
    }
    return np.select(list(rules.values()), [REGIMES.index(name) for name in rules], 0)


def one_of(name):
    return lambda r, t, n: 1 if REGIMES[r.label(t, n)] == name else -1


MEAN, STD = statistics.fmean, statistics.pstdev
REFERENCES = {
    "return": lambda r, t, n: r.ret(t, n),
    "volatility": lambda r, t, n: STD([r.ret(k) for k in range(t - n + 1, t + 1)]),
    "seasonal_return": Reference.calm,
    "annual_volatility": Reference.annual_volatility,
    "sma_cross": lambda r, t, fast, slow: (
        MEAN(r.last(r.c, t, fast)) / MEAN(r.last(r.c, t, slow)) - 1
    ),
    "volume": lambda r, t, n: r.v[t] / MEAN(r.last(r.v, t, n)) - 1,
    "momentum": Reference.momentum,
    "rsi": Reference.rsi,
    "price_sma": lambda r, t, n: r.c[t] / MEAN(r.last(r.c, t, n)) - 1,
    "bollinger": lambda r, t, n: (r.c[t] - MEAN(r.last(r.c, t, n))) / (2 * STD(r.last(r.c, t, n))),
    "macd": Reference.macd,
    "price_ema": lambda r, t, n: r.c[t] / r.averaged(r.c, t, n, 0, 2 / (n + 1)) - 1,
    "ewma_momentum": Reference.ewma_momentum,
    "macd_line": lambda r, t, fast, slow: r.line(t, fast, slow) / r.c[t],
    "bollinger_width": lambda r, t, n: 4 * STD(r.last(r.c, t, n)) / MEAN(r.last(r.c, t, n)),
    "drawdown": lambda r, t, n: r.c[t] / max(r.last(r.h, t, n)) - 1,
    "atr_ratio": Reference.atr_ratio,
    "volume_zscore": lambda r, t, n: (r.v[t] - MEAN(r.last(r.v, t, n))) / STD(r.last(r.v, t, n)),
    "vwap": Reference.vwap,
    "money_flow": Reference.money_flow,
    "volume_price": lambda r, t, n: statistics.correlation(r.last(r.c, t, n), r.last(r.v, t, n)),
    "time_of_day": lambda r, t: 1 - 2 * r.minutes_left(t) / (23 * 60),
    "minutes_to_break": lambda r, t, within: min(1, r.minutes_left(t) / within),
    "regular_hours": lambda r, t: 1 if time(9, 30) <= r.clock(t).time() < time(16) else -1,
    "regime": Reference.label,
    **{name.lower(): one_of(name) for name in REGIMES[1:]},
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
