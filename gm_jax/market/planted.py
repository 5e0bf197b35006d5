"""The planted market: a hidden drift of known law in pure noise, and the best guess at its sign."""

from __future__ import annotations

import numpy as np

from gm_jax.market.calendar import SESSION_MINUTES
from gm_jax.market.paths import (
    MEAN_VOLUME,
    SESSIONS_PER_YEAR,
    TICK,
    Paths,
    Streams,
    extremes,
    whole_contracts,
)


_VOLUME_SD = 0.25  # of log volume


def planted(
    session: np.ndarray,
    minutes: int,
    stream: Streams,
    *,
    duration: float,
    kappa: float,
    annual_volatility: float,
    start_price: float,
) -> Paths:
    """Generate log prices with normal shocks of constant size and a hidden drift of either sign.

    ln close[t] = ln close[t-1] + sd (kappa state[t] + shock[t]), open[t] = close[t-1]; the state is
    +1 or -1 and changes with probability 1/duration at each bar, whatever the time between bars.
    Drift that lasts makes long paths wander: over many bars the variance is that of the shocks
    times about 1 + duration kappa².

    Args:
        session: [T] i64, trade dates of the bars; only their number matters here.
        minutes: length of a bar.
        stream: noise by name.
        duration: mean number of bars between changes of the drift.
        kappa: size of the drift, in standard deviations of a bar.
        annual_volatility: of the shocks alone, a fraction; 252 full sessions make a year.
        start_price: first open, points.
    """
    sd = bar_sd(annual_volatility, minutes)
    state = hidden_state(len(session), duration, stream)
    shock = stream("shock").standard_normal(len(session))

    start = np.log(np.rint(start_price / TICK) * TICK)
    end = start + np.cumsum(sd * (kappa * state + shock))
    begin = np.concatenate([[start], end[:-1]])
    high, low = extremes(begin, end, sd, stream)
    # Rounding is monotone: what bounds the log prices bounds the rounded prices.
    open_, high, low, close = (
        np.maximum(np.rint(np.exp(x) / TICK), 1.0) * TICK for x in (begin, high, low, end)
    )

    noise = _VOLUME_SD * stream("volume").standard_normal(len(session)) - _VOLUME_SD**2 / 2
    volume = whole_contracts(MEAN_VOLUME * minutes / 5 * np.exp(noise))
    belief = filter_belief(np.log(close / open_) / sd, duration, kappa)
    return Paths(open_, high, low, close, volume, belief)


def bar_sd(annual_volatility: float, minutes: int) -> float:
    """Return the standard deviation of a bar's log return, a fraction."""
    return annual_volatility / float(np.sqrt(SESSIONS_PER_YEAR * SESSION_MINUTES / minutes))


def hidden_state(bars: int, duration: float, stream: Streams) -> np.ndarray:
    """Return the sign of the drift, [T] f64 of ±1, which flips with probability 1/duration a bar.

    Args:
        bars: T.
        duration: mean number of bars between changes.
        stream: noise by name.
    """
    u = stream("state").random(bars)
    flip = np.where(u < 1.0 / duration, -1.0, 1.0)
    flip[0] = 1.0 if u[0] < 0.5 else -1.0  # either sign is as likely at the start
    return np.cumprod(flip)


def filter_belief(z: np.ndarray, duration: float, kappa: float) -> np.ndarray:
    """Return P(drift up at t | bars ≤ t) − P(drift down at t | bars ≤ t), [T] f64.

    The two-state Hamilton recursion, written for the difference b of the two probabilities:
    m = (1 − 2/duration) b[t-1] before bar t, then b[t] = (m + e) / (1 + m e), e = tanh(kappa z[t]).
    The best forecast of the next return is sd kappa (1 − 2/duration) b[t].

    Args:
        z: [T] returns in standard deviations of a bar, normal around ±kappa with variance 1.
        duration: mean number of bars between changes of the drift.
        kappa: size of the drift, in standard deviations of a bar.

    Source: Hamilton (1989), Econometrica 57(2), with equal states.
    """
    keep = 1.0 - 2.0 / duration
    belief, b = np.empty(len(z)), 0.0
    for t, evidence in enumerate(np.tanh(kappa * z).tolist()):
        m = keep * b
        b = (m + evidence) / (1.0 + m * evidence)
        belief[t] = b
    return belief
