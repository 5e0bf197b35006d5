"""Features of volume, alone and with price."""

from __future__ import annotations

from gm_jax.market.ops import Ops, Value, total
from gm_jax.market.registry import feature


@feature
def volume(x: Ops, length: int = 10) -> Value:
    """Volume / mean volume of {length} bars − 1; 0 without any volume; pure number."""
    usual = x.mean(x.volume, length)
    return x.ratio(x.volume - usual, usual)


@feature
def volume_ratio(x: Ops, length: int = 20) -> Value:
    """Mean volume of 5 bars / mean volume of {length} bars − 1; 0 without volume; pure number."""
    usual = x.mean(x.volume, length)
    return x.ratio(x.mean(x.volume, 5) - usual, usual)


@feature
def volume_trend(x: Ops, length: int = 20) -> Value:
    """Rise of the line fitted to {length} volumes / their mean, in −6..6; pure number."""
    return x.ratio(x.slope(x.volume, length) * (length - 1), x.mean(x.volume, length))


@feature
def volume_zscore(x: Ops, length: int = 20) -> Value:
    """(Volume − mean) / standard deviation of {length} volumes; sigmas."""
    return x.ratio(x.volume - x.mean(x.volume, length), x.std(x.volume, length))


@feature
def vwap(x: Ops, length: int = 20) -> Value:
    """Close / volume-weighted mean price of {length} bars − 1; 0 without any volume; fraction."""
    # A bar's price is (high + low + close) / 3; distances keep a constant price exact.
    here, bars = x.close + x.close + x.close, x.high + x.low + x.close
    prices, volumes = x.window(bars, length), x.window(x.volume, length)
    moved = total(v * (p - here) for p, v in zip(prices, volumes, strict=True))
    gap = x.ratio(moved, 3 * total(volumes))
    return x.ratio(0.0 - gap, x.close + gap)


@feature
def money_flow(x: Ops, length: int = 14) -> Value:
    """Money flow index {length} / 50 − 1, in −1..1; 0 without any flow; pure number."""
    # Three times the typical price: the factor cancels.
    price = x.high + x.low + x.close
    last, flow = x.lag(price, 1), price * x.volume
    signed = x.where(price > last, flow, x.where(price < last, 0.0 - flow, 0.0))
    balance = x.sum(signed, length)
    return x.ratio(balance, x.sum(x.absolute(signed), length))


@feature
def volume_price(x: Ops, length: int = 20) -> Value:
    """Correlation of close and volume over {length} bars (TA-Lib's CORREL), in −1..1."""
    return x.correlation(x.close, x.volume, length)


@feature
def mean_notional(x: Ops, length: int = 20) -> Value:
    """Mean of volume × quoted close over {length} bars; contracts × points."""
    return x.mean(x.volume * x.raw_close, length)
