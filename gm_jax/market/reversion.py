"""The mean-reverting market: prices that stray from a random walk and come back."""

from __future__ import annotations

import math

import numpy as np

from gm_jax.market.paths import (
    MEAN_VOLUME,
    Paths,
    Streams,
    ar1,
    bar_sd,
    even_volume,
    extremes,
    log_path,
    on_ticks,
)


def mean_reverting(
    session: np.ndarray,
    minutes: int,
    stream: Streams,
    *,
    half_life: float,
    share: float,
    annual_volatility: float,
    start_price: float,
    mean_volume: float = MEAN_VOLUME,
) -> Paths:
    """Generate log prices that are a random walk plus a stationary deviation.

    ln close[t] = walk[t] + dev[t], walk[t] = walk[t-1] + a shock, dev[t] = phi dev[t-1] + a shock,
    phi = 2^(−1/half_life), open[t] = close[t-1]; both shocks are normal, their sizes constant.

    Args:
        session: [T] i64, trade dates of the bars; only their number matters here.
        minutes: length of a bar.
        stream: noise by name.
        half_life: bars after which half of a deviation is expected to be left.
        share: of a bar's variance that the deviation's moves make, in (0, 1).
        annual_volatility: of all one-bar returns, a fraction; 252 full sessions make a year.
        start_price: first open, points.
        mean_volume: contracts in five minutes.

    Raises:
        UserError: the price leaves its range.

    Source: Poterba and Summers (1988), Journal of Financial Economics 22(1).
    """
    sd, bars = bar_sd(annual_volatility, minutes), len(session)
    phi = 2.0 ** (-1.0 / half_life)
    deviation_sd = sd * math.sqrt(share / (2.0 - 2.0 * phi))
    noise = stream("deviation").standard_normal(bars + 1)
    deviation = ar1(deviation_sd, half_life, noise)  # the first is that before bar 0
    walk = sd * math.sqrt(1.0 - share) * stream("shock").standard_normal(bars)

    begin, end = log_path(start_price, walk + np.diff(deviation))
    high, low = extremes(begin, end, sd, stream)
    open_, high, low, close = (on_ticks(x) for x in (begin, high, low, end))
    volume = even_volume(bars, mean_volume * minutes / 5, stream)
    belief = kalman_belief(np.log(close / open_) / sd, half_life, share)
    return Paths(open_, high, low, close, volume, belief, -deviation[1:])


def kalman_belief(z: np.ndarray, half_life: float, share: float) -> np.ndarray:
    """Return P(dev[t] < 0 | bars ≤ t) − P(dev[t] > 0 | bars ≤ t), [T] f64.

    The next move is expected to go against the deviation. It is normal given the bars, with mean m
    and variance v from the Kalman filter of the returns z[t] = (phi − 1) dev[t-1] + shocks, so the
    answer is erf(−m / √(2 v)).

    Args:
        z: [T] returns in standard deviations of a bar.
        half_life: bars after which half of a deviation is expected to be left.
        share: of a bar's variance that the deviation's moves make.

    Source: Kalman (1960), with shocks shared by state and observation.
    """
    phi = 2.0 ** (-1.0 / half_life)
    usual = share / (2.0 - 2.0 * phi)  # variance of the deviation
    shock = (1.0 - phi**2) * usual  # of which new at each bar
    m, v, belief = 0.0, usual, np.empty(len(z))
    for t, x in enumerate(z.tolist()):
        total = (1.0 - phi) ** 2 * v + shock + 1.0 - share  # variance of z[t] given z[<t]
        gain = (shock - phi * (1.0 - phi) * v) / total
        m = phi * m + gain * (x + (1.0 - phi) * m)
        v = phi**2 * v + shock - gain**2 * total
        belief[t] = math.erf(-m / math.sqrt(2.0 * v))
    return belief
