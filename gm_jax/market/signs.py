"""A market whose direction is noise and whose rest is its own: what a null test trains on.

With the gap g = ln(open[t] / close[t-1]) (0 at a roll, whose gap is nobody's P&L), the intrabar
return b = ln(close[t] / open[t]), r = g + b, its mean m over the training bars and a fair coin
s[t] = ±1, the copy has

    r'[t] = s (r − m) + m
    open'[t] = close'[t-1] exp(s g)
    close'[t] = open'[t] exp(s b + (1 − s) m)

|r − m|, times, volumes, holes and rolls stay, and with them drift, seasons, tails and clustering.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.paths import PRICES, streams
from gm_jax.market.rolls import jumps


def random_signs(bars: Bars, train: tuple[int, int], seed: int) -> Bars:
    """Copy a market with an independent random sign for each bar's return less its mean.

    Args:
        bars: the whole history.
        train: first bar and end of the bars that the mean is taken over.
        seed: 0 or more; decides the signs. Those of a longer market begin with the shorter's.

    Raises:
        UserError: the copy's price leaves `PRICES`.
    """
    coin = streams(seed)("random signs").random(len(bars))
    gap, intrabar = _log_returns(bars)
    mean = float(np.mean((gap + intrabar)[slice(*train)]))
    return _mirrored(bars, np.where(coin < 0.5, -1.0, 1.0), mean)


def _log_returns(bars: Bars) -> tuple[np.ndarray, np.ndarray]:
    """Return log returns gap, intrabar, each [T] f64; no gap at the first bar or a roll."""
    gap = np.where(bars.roll, 0.0, jumps(bars.open, bars.close))
    return gap, np.log(bars.close / bars.open)


def _mirrored(bars: Bars, sign: np.ndarray, mean: float) -> Bars:
    """Return the market with r' = sign (r − mean) + mean.

    Added up, ln close'[t] = ln close[t] + Σ_{u ≤ t} (sign − 1)(r[u] − mean): no rounding of a price
    reaches a later one, and where no sign has turned the bars are the market's own.

    Args:
        bars: T bars.
        sign: [T] f64, −1 or 1.
        mean: m, log return of a bar.

    Raises:
        UserError: the price leaves `PRICES`.
    """
    gap, intrabar = _log_returns(bars)
    turned = sign - 1.0
    away = np.cumsum(turned * (gap + intrabar - mean))  # ln close' − ln close
    away_at_open = np.concatenate([[0.0], away])[:-1] + turned * gap
    with np.errstate(over="ignore"):
        open_, close = bars.open * np.exp(away_at_open), bars.close * np.exp(away)
    _refuse_far(open_, close)

    same = sign > 0
    high = open_ * np.where(same, bars.high / bars.open, bars.open / bars.low)
    low = open_ * np.where(same, bars.low / bars.open, bars.open / bars.high)
    # The drift that is added back may carry the close beyond the mirrored extremes.
    high = np.maximum(high, np.maximum(open_, close))
    low = np.minimum(low, np.minimum(open_, close))
    open_, high, low, close = (_on_ticks(price, bars.tick) for price in (open_, high, low, close))
    return replace(bars, open=open_, high=high, low=low, close=close)


def _on_ticks(price: np.ndarray, tick: float) -> np.ndarray:
    """Round to whole ticks, at least one; monotone, so that bounds hold on."""
    return np.maximum(np.rint(price / tick), 1.0) * tick


def _refuse_far(open_: np.ndarray, close: np.ndarray) -> None:
    """Make sure that the price stays where ticks and contracts mean something."""
    low, high = PRICES
    outside = (np.minimum(open_, close) < low) | (np.maximum(open_, close) > high)
    if outside.any():
        raise UserError(
            f"The copy of the market with random signs leaves {low:,.0f} to {high:,.0f} points at "
            f"bar {int(np.argmax(outside)):,}: use another seed, or a shorter or calmer market."
        )
