"""Markets with a hidden state of two values, and the best guess at it from the bars.

The state sets drift and volatility; every world in which only these switch is a case of it.
"""

from __future__ import annotations

import numpy as np

from gm_jax.errors import UserError
from gm_jax.market.paths import (
    MEAN_VOLUME,
    Paths,
    Streams,
    bar_sd,
    even_volume,
    extremes,
    log_path,
    on_ticks,
)


def switching(
    session: np.ndarray,
    minutes: int,
    stream: Streams,
    *,
    duration_up: float,
    duration_down: float,
    drift_up: float,
    drift_down: float,
    volatility_ratio: float,
    annual_volatility: float,
    start_price: float,
    mean_volume: float = MEAN_VOLUME,
) -> Paths:
    """Generate log prices with normal shocks whose drift and size follow a hidden state.

    ln close[t] = ln close[t-1] + sd (drift + ratio shock[t]), open[t] = close[t-1], with drift_up
    and ratio 1 in state +1, drift_down and `volatility_ratio` in state -1. The state changes at
    each bar with probability 1/duration, whatever the time between bars.

    Highs and lows are those of paths as wild as the bars so far foretell, not as wild as the state:
    so they reveal nothing about it, and a filter of returns is the best filter of bars.

    Args:
        session: [T] i64, trade dates of the bars; only their number matters here.
        minutes: length of a bar.
        stream: noise by name.
        duration_up: mean number of bars that state +1 lasts.
        duration_down: the same of state -1.
        drift_up: mean return in state +1, in deviations of a bar of state +1.
        drift_down: mean return in state -1, in deviations of a bar of state +1.
        volatility_ratio: deviation of a bar in state -1 over that in state +1.
        annual_volatility: of the shocks in state +1, a fraction; 252 full sessions make a year.
        start_price: first open, points.
        mean_volume: contracts in five minutes.

    Raises:
        UserError: state +1 is not the favourable one, or the price leaves its range.
    """
    if drift_up < drift_down:
        raise UserError(
            f"drift_up={drift_up:g} is below drift_down={drift_down:g}: the first is that of the "
            "favourable state, exchange them."
        )
    sd, bars = bar_sd(annual_volatility, minutes), len(session)
    state = hidden_state(bars, duration_up, duration_down, stream)
    shock = stream("shock").standard_normal(bars)
    move = np.where(state > 0, drift_up + shock, drift_down + volatility_ratio * shock)

    begin, end = log_path(start_price, sd * move)
    open_, close = on_ticks(begin), on_ticks(end)
    belief = hamilton_belief(
        np.log(close / open_) / sd,
        duration_up=duration_up,
        duration_down=duration_down,
        drift_up=drift_up,
        drift_down=drift_down,
        volatility_ratio=volatility_ratio,
    )
    before = np.concatenate([[_usual(duration_up, duration_down)], belief[:-1]])
    foretold = np.sqrt(1.0 + (1.0 - before) / 2 * (volatility_ratio**2 - 1.0))
    high, low = extremes(begin, end, sd * foretold, stream)
    volume = even_volume(bars, mean_volume * minutes / 5, stream)
    return Paths(open_, on_ticks(high), on_ticks(low), close, volume, belief, state)


def planted(
    session: np.ndarray,
    minutes: int,
    stream: Streams,
    *,
    duration: float,
    kappa: float,
    annual_volatility: float,
    start_price: float,
    mean_volume: float = MEAN_VOLUME,
) -> Paths:
    """Generate the symmetric case of `switching`: drift ±kappa in noise of constant size.

    Drift that lasts makes long paths wander: over many bars the variance is that of the shocks
    times about 1 + duration kappa².

    Args:
        session: [T] i64, trade dates of the bars.
        minutes: length of a bar.
        stream: noise by name.
        duration: mean number of bars between changes of the drift.
        kappa: size of the drift, in standard deviations of a bar.
        annual_volatility: of the shocks alone, a fraction; 252 full sessions make a year.
        start_price: first open, points.
        mean_volume: contracts in five minutes.

    Raises:
        UserError: the price leaves its range.
    """
    return switching(
        session,
        minutes,
        stream,
        duration_up=duration,
        duration_down=duration,
        drift_up=kappa,
        drift_down=-kappa,
        volatility_ratio=1.0,
        annual_volatility=annual_volatility,
        start_price=start_price,
        mean_volume=mean_volume,
    )


def hidden_state(
    bars: int, duration_up: float, duration_down: float, stream: Streams
) -> np.ndarray:
    """Return the stationary two-state chain, [T] f64 of ±1.

    Args:
        bars: T.
        duration_up: mean number of bars that +1 lasts; it ends with probability 1/duration a bar.
        duration_down: the same of -1.
        stream: noise by name.
    """
    u = stream("state").random(bars)
    up = bool(u[0] < (1.0 + _usual(duration_up, duration_down)) / 2)
    state, begin = np.ones(bars), 0
    leaves = {True: u < 1.0 / duration_up, False: u < 1.0 / duration_down}
    for t in (np.flatnonzero(leaves[True][1:] | leaves[False][1:]) + 1).tolist():
        if leaves[up][t]:
            state[begin:t] = 1.0 if up else -1.0
            begin, up = t, not up
    state[begin:] = 1.0 if up else -1.0
    return state


def hamilton_belief(
    z: np.ndarray,
    *,
    duration_up: float,
    duration_down: float,
    drift_up: float,
    drift_down: float,
    volatility_ratio: float,
) -> np.ndarray:
    """Return P(state +1 at t | bars ≤ t) − P(state −1 at t | bars ≤ t), [T] f64.

    The two-state Hamilton recursion, written for the difference b of the two probabilities:
    m = (1 − p − q) b[t-1] + q − p before bar t, where p = 1/duration_up and q = 1/duration_down end
    the states, then b[t] = (m + e) / (1 + m e) with e = tanh(½ ln(f₊(z[t]) / f₋(z[t]))); f₊ is the
    density of N(drift_up, 1), f₋ that of N(drift_down, volatility_ratio²).

    Args:
        z: [T] returns in standard deviations of a bar of state +1.
        duration_up: mean number of bars that state +1 lasts.
        duration_down: the same of state -1.
        drift_up: mean of z in state +1.
        drift_down: mean of z in state -1.
        volatility_ratio: deviation of z in state -1; in state +1 it is 1.

    Source: Hamilton (1989), Econometrica 57(2).
    """
    keep, lean = (
        1.0 - 1.0 / duration_up - 1.0 / duration_down,
        1.0 / duration_down - 1.0 / duration_up,
    )
    wild = (z - drift_down) / volatility_ratio
    log_odds = (wild - (z - drift_up)) * (wild + (z - drift_up)) / 2 + np.log(volatility_ratio)
    belief, b = np.empty(len(z)), _usual(duration_up, duration_down)
    for t, evidence in enumerate(np.tanh(log_odds / 2).tolist()):
        m = keep * b + lean
        b = (m + evidence) / (1.0 + m * evidence)
        belief[t] = b
    return belief


def _usual(duration_up: float, duration_down: float) -> float:
    """Return the share of time in state +1 minus that in state -1."""
    return (duration_up - duration_down) / (duration_up + duration_down)
