"""Features of price: returns, trends, bands and ranges.

Observation features are centred and scaled by definition and do not see roll gaps; `atr` and
`change_std` stay in points for the simulator.
"""

from __future__ import annotations

import math

from gm_jax.market.calendar import SESSION_MINUTES
from gm_jax.market.ops import Ops, Value, half_life_weight
from gm_jax.market.registry import feature


_YEAR = 252 * SESSION_MINUTES  # trading minutes


@feature
def return_(x: Ops, length: int) -> Value:
    """Close / close {length} bars ago − 1; fraction."""
    past = x.lag(x.close, length)
    return x.ratio(x.close - past, past)


@feature
def volatility(x: Ops, length: int = 20) -> Value:
    """Population standard deviation of the last {length} one-bar returns; fraction per bar."""
    return x.std(x.returns, length)


@feature
def seasonal_return(x: Ops) -> Value:
    """Return of the bar / season of |return| at its time of day; fraction."""
    return x.ratio(x.returns, x.once(_season))


def _season(x: Ops) -> Value:
    return x.season(x.absolute(x.returns))


@feature
def annual_volatility(x: Ops, length: int) -> Value:
    """Annualised rms of {length} returns over that of their seasons, of fewer early; fraction."""
    # Not the rms of seasonal returns: a season of few days can be tiny, and one of them huge.
    season = x.once(_season)
    squares = x.long_mean(x.returns * x.returns, length)
    calm = x.ratio(squares, x.long_mean(season * season, length))
    # Mean first: `Warmup` has no length of a bar, and an age divided by nothing is that age.
    return x.sqrt(calm * _YEAR / x.bar_minutes)


@feature
def momentum(x: Ops, length: int = 5) -> Value:
    """Sum of {length} one-bar returns / (√{length} · their rms over 4·{length} bars); sigmas."""
    # A random walk gives standard deviation 1 whatever the volatility; |value| ≤ 2 √length.
    squares = x.sum(x.returns * x.returns, 4 * length)
    return x.ratio(x.sum(x.returns, length) * 2, x.sqrt(squares))


@feature
def ewma_momentum(x: Ops, half_life: int = 20) -> Value:
    """EWMA of returns / root of the EWMA of their squares, half-life {half_life} bars; sigmas."""
    # Times √((2 − w) / w): a random walk gives standard deviation 1, and this is the bound.
    w = half_life_weight(half_life)
    mean = x.smooth(x.returns, half_life, w)
    square = x.smooth(x.returns * x.returns, half_life, w)
    return x.ratio(mean * math.sqrt((2 - w) / w), x.sqrt(square))


@feature
def rsi(x: Ops, length: int = 14) -> Value:
    """RSI {length} (Wilder) / 50 − 1, in −1..1; 0 when nothing moved; pure number."""
    move = x.change * x.factor  # one scale on both sides of a roll
    gain = x.maximum(0.0, move)
    up, down = x.wilder(gain, length), x.wilder(gain - move, length)
    return x.ratio(up - down, up + down)


@feature
def price_sma(x: Ops, length: int = 20) -> Value:
    """Close / mean close of {length} bars − 1; fraction."""
    usual = x.mean(x.close, length)
    return x.ratio(x.close - usual, usual)


@feature
def sma_cross(x: Ops, fast: int = 5, slow: int = 20) -> Value:
    """Mean close of {fast} bars / mean close of {slow} bars − 1; fraction."""
    _refuse_unordered(fast, slow)
    usual = x.mean(x.close, slow)
    return x.ratio(x.mean(x.close, fast) - usual, usual)


@feature
def price_ema(x: Ops, length: int = 20) -> Value:
    """Close / exponential mean of closes {length} − 1; fraction."""
    usual = x.ema(x.close, length)
    return x.ratio(x.close - usual, usual)


@feature
def macd(x: Ops, fast: int = 12, slow: int = 26, signal: int = 9) -> Value:
    """MACD histogram ({fast}, {slow}, {signal}) / close; fraction."""
    line = _macd_line(x, fast, slow)
    return x.ratio(line - x.ema(line, signal), x.close)


@feature
def macd_line(x: Ops, fast: int = 12, slow: int = 26) -> Value:
    """Difference of the exponential means {fast} and {slow} of closes / close; fraction."""
    return x.ratio(_macd_line(x, fast, slow), x.close)


def _macd_line(x: Ops, fast: int, slow: int) -> Value:
    _refuse_unordered(fast, slow)
    # Both averages begin at the same bar.
    return x.ema(x.close, fast, delay=slow - fast) - x.ema(x.close, slow)


def _refuse_unordered(fast: int, slow: int) -> None:
    if fast >= slow:
        raise ValueError(f"got fast {fast} and slow {slow}; the fast length must be the smaller")


@feature
def bollinger(x: Ops, length: int = 20) -> Value:
    """(Close − mean) / (2 · standard deviation) of {length} closes; ±1 at the bands."""
    return x.ratio(x.close - x.mean(x.close, length), 2 * x.std(x.close, length))


@feature
def bollinger_width(x: Ops, length: int = 20) -> Value:
    """Upper − lower Bollinger band (2 deviations of {length} closes) / their mean; fraction."""
    return x.ratio(4 * x.std(x.close, length), x.mean(x.close, length))


@feature
def higher_highs(x: Ops, length: int = 10) -> Value:
    """Share of the last {length} bars with a high above the bar before, × 2 − 1; pure number."""
    return 2 * x.mean(x.where(x.high > x.lag(x.high, 1), 1.0, 0.0), length) - 1


@feature
def lower_lows(x: Ops, length: int = 10) -> Value:
    """Share of the last {length} bars with a low below the bar before, × 2 − 1; pure number."""
    return 2 * x.mean(x.where(x.low < x.lag(x.low, 1), 1.0, 0.0), length) - 1


@feature
def channel(x: Ops, length: int = 20) -> Value:
    """Close within the highest high and lowest low of {length} bars, as −1..1; pure number."""
    top, bottom = x.highest(x.high, length), x.lowest(x.low, length)
    return x.ratio((x.close - bottom) - (top - x.close), top - bottom)


@feature
def drawdown(x: Ops, length: int = 60) -> Value:
    """Close / highest high of {length} bars − 1, at most 0; fraction."""
    top = x.highest(x.high, length)
    return x.ratio(x.close - top, top)


@feature
def atr(x: Ops, length: int = 14) -> Value:
    """Average true range {length} (Wilder); quoted points."""
    return x.wilder(x.true_range, length)


@feature
def atr_ratio(x: Ops, length: int = 14) -> Value:
    """Average true range {length} (Wilder) / close; fraction."""
    return x.ratio(x.wilder(x.true_range * x.factor, length), x.close)


@feature
def change_std(x: Ops, length: int = 20) -> Value:
    """Population standard deviation of the last {length} price changes; quoted points."""
    return x.std(x.change, length)
