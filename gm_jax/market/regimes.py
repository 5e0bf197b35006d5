"""Market regimes: what volatility and trend are by the measure of the last weeks, causally.

    v = deviation of 20 returns, each divided by the season of |return| at its time of day
    T = |SMA5 / SMA20 − 1| / (deviation of 20 returns · √20)

Bar t is, by percentiles of v and T over the N bars before it, the first that fits: CRISIS v > p97,
VOLATILE v > p85, BULL_TREND or BEAR_TREND T > p70, CONSOLIDATION v < p30, else NORMAL. Fixed
thresholds would put nearly every bar of a day into one class. T has SMA5 / SMA20 − 1 for its usual
logarithm, which is no basic operation: the sign is the same, and so is the order up to a
difference of second order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gm_jax.market.ops import Ops, Value
from gm_jax.market.price_features import seasonal_return
from gm_jax.market.readers import Warmup
from gm_jax.market.registry import feature, parse


REGIMES = ("NORMAL", "BULL_TREND", "BEAR_TREND", "CRISIS", "VOLATILE", "CONSOLIDATION")
REGIME_WINDOW = {5: 5_520, 30: 2_300}  # bars by minutes of a bar: 20 sessions and 50

NORMAL, BULL_TREND, BEAR_TREND, CRISIS, VOLATILE, CONSOLIDATION = map(float, range(len(REGIMES)))


def unlabelled(length: int, bars: int) -> int:
    """Return how many of so many bars are NORMAL only because their window is not full yet."""
    return min(bars, label(Warmup(), length).bars)


def labelling(minutes: int) -> str:
    """Return the feature that labels bars of so many minutes in reports, pictures and rewards."""
    return f"regime_{REGIME_WINDOW[minutes]}"


def windows(names: Sequence[str]) -> dict[str, int]:
    """Return the window of each regime feature among some names, bars."""
    found = {name: parse(name) for name in names}
    own = (regime, crisis, volatile, bull_trend, bear_trend, consolidation)
    return {name: f.lengths["length"] for name, f in found.items() if f.function in own}


def label(x: Ops, length: int) -> Value:
    """Return the regime's id, an index into `REGIMES`; NORMAL before the window is full.

    Args:
        x: reader of the language.
        length: N, bars that the percentiles are taken over.
    """
    volatility = x.std(seasonal_return(x), 20)
    usual = x.mean(x.close, 20)
    drift = x.ratio(x.mean(x.close, 5) - usual, usual)
    trend = x.ratio(x.absolute(drift), x.std(x.returns, 20) * math.sqrt(20))

    low, high, extreme = x.percentiles(volatility, length, (30, 85, 97))
    (strong,) = x.percentiles(trend, length, (70,))
    quiet = x.where(volatility < low, CONSOLIDATION, NORMAL)
    trending = x.where(drift > 0, BULL_TREND, BEAR_TREND)
    ordinary = x.where(trend > strong, trending, quiet)
    return x.where(volatility > extreme, CRISIS, x.where(volatility > high, VOLATILE, ordinary))


@feature
def regime(x: Ops, length: int) -> Value:
    """Regime by {length} bars, an index into `REGIMES`; 0, NORMAL, before there are as many."""
    return x.from_start(x.once(label, length))


def _is(x: Ops, length: int, number: float) -> Value:
    other = x.absolute(regime(x, length) - number) > 0
    return x.where(other, -1.0, 1.0)


@feature
def crisis(x: Ops, length: int) -> Value:
    """1 in the regime CRISIS by {length} bars, else −1."""
    return _is(x, length, CRISIS)


@feature
def volatile(x: Ops, length: int) -> Value:
    """1 in the regime VOLATILE by {length} bars, else −1."""
    return _is(x, length, VOLATILE)


@feature
def bull_trend(x: Ops, length: int) -> Value:
    """1 in the regime BULL_TREND by {length} bars, else −1."""
    return _is(x, length, BULL_TREND)


@feature
def bear_trend(x: Ops, length: int) -> Value:
    """1 in the regime BEAR_TREND by {length} bars, else −1."""
    return _is(x, length, BEAR_TREND)


@feature
def consolidation(x: Ops, length: int) -> Value:
    """1 in the regime CONSOLIDATION by {length} bars, else −1."""
    return _is(x, length, CONSOLIDATION)
