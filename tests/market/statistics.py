"""What a market looks like, in numbers: one function over bars, files and generated ones alike.

Returns are of closes within a session, one after the other; across the break, a hole or a change of
contract there is none. Lags count such returns.
"""

from __future__ import annotations

import numpy as np

from gm_jax.market.bars import Bars
from gm_jax.market.calendar import minute_of_session


YEAR = 365.25 * 24 * 3600 * 1e9  # ns


def statistics(bars: Bars) -> dict[str, float]:
    """Return every statistic by name; bp are of the price, ticks of 0.25 points."""
    inside, r = _returns(bars)
    a = np.abs(r)
    slot = minute_of_session(bars.time) // bars.minutes
    usual = _mean_by(slot[inside], a)
    seasonless = a / usual[slot[inside]]
    session = int(slot.max())  # returns of a full one
    years = (bars.time[-1] - bars.time[0]) / YEAR
    traded = (bars.volume > 0) & (bars.high > bars.low)
    span = bars.high - bars.low
    volume = _mean_by(slot, bars.volume)
    jump = (bars.open[1:] - bars.close[:-1])[inside[1:]] / bars.tick
    daily, weekend = _gaps_bp(bars)
    opening = (15 * 60 + 30) // bars.minutes  # 09:30 New York
    return {
        "bars a year": len(bars) / years,
        "sd bp": r.std() * 1e4,
        "median abs return bp": float(np.median(a)) * 1e4,
        "annual volatility": r.std() * np.sqrt(len(bars) / years),
        "excess kurtosis": _moment(r, 4) - 3,
        "skew": _moment(r, 3),
        "largest autocorrelation": max(abs(autocorrelation(r, k)) for k in range(1, 11)),
        "abs autocorrelation 1": autocorrelation(a, 1),
        "abs autocorrelation 10": autocorrelation(a, 10),
        "abs autocorrelation session": autocorrelation(a, session),
        "seasonless autocorrelation 1": autocorrelation(seasonless, 1),
        "seasonless autocorrelation 10": autocorrelation(seasonless, 10),
        "seasonless autocorrelation session": autocorrelation(seasonless, session),
        "corr log volume log range": _corr(np.log(bars.volume[traded]), np.log(span[traded])),
        "corr volume abs return": _corr(bars.volume[inside], a),
        "range over body": span.mean() / np.abs(bars.close - bars.open).mean(),
        "hill index": hill(a, 0.025),
        "leverage": _leverage(bars.session[inside], r),
        "variance ratio 4": variance_ratio(r, 4),
        "variance ratio 46": variance_ratio(r, 46),
        "open differs": float(np.mean(jump != 0)),
        "open differs ticks": float(np.abs(jump).mean()),
        "zero returns": float(np.mean(r == 0)),
        "break gap p50 bp": float(np.quantile(daily, 0.50)),
        "break gap p95 bp": float(np.quantile(daily, 0.95)),
        "weekend gap p50 bp": float(np.quantile(weekend, 0.50)),
        "weekend gap p95 bp": float(np.quantile(weekend, 0.95)),
        "season of volatility": usual[1:].max() / usual[1:].min(),  # slot 0 has no return
        "season of volume": volume.max() / volume.min(),
        "opening volatility": usual[opening] / a.mean(),
        "opening volume": volume[opening] / bars.volume.mean(),
    }


def autocorrelation(x: np.ndarray, lag: int) -> float:
    """Return corr(x[t], x[t + lag])."""
    return _corr(x[:-lag], x[lag:])


def variance_ratio(r: np.ndarray, q: int) -> float:
    """Return Var(sum of q returns) / (q Var(return)), sums overlapping; 1 for a random walk."""
    path = np.concatenate([[0.0], np.cumsum(r - r.mean())])
    return float((path[q:] - path[:-q]).var() / (q * r.var()))


def hill(a: np.ndarray, share: float) -> float:
    """Return Hill's estimate of the tail index from the largest `share` of absolute values."""
    top = np.sort(a)[-int(share * len(a)) - 1 :]
    return float(1 / np.mean(np.log(top[1:] / top[0])))


def _returns(bars: Bars) -> tuple[np.ndarray, np.ndarray]:
    """Return where a bar has a return within its session, [T] bool, and those returns."""
    same = np.diff(bars.session, prepend=bars.session[0] - 1) == 0
    inside = same & ~bars.hole & ~bars.roll
    return inside, np.diff(np.log(bars.close), prepend=0.0)[inside]


def _gaps_bp(bars: Bars) -> tuple[np.ndarray, np.ndarray]:
    """Return absolute gaps over the daily break and over weekends, bp."""
    nights = np.diff(bars.session)
    gap = np.abs(np.log(bars.open[1:] / bars.close[:-1])) * 1e4
    clean = ~bars.hole[1:] & ~bars.roll[1:]
    return gap[clean & (nights == 1)], gap[clean & (nights >= 3)]


def _leverage(session: np.ndarray, r: np.ndarray) -> float:
    """Return corr(a session's return, log variance of the next)."""
    _, number = np.unique(session, return_inverse=True)
    total, square = (np.bincount(number, weights=x) for x in (r, r**2))
    return _corr(total[:-1], np.log(square[1:]))


def _mean_by(slot: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the mean of x in each slot; 0 where there is none."""
    return np.bincount(slot, weights=x) / np.maximum(np.bincount(slot), 1)


def _moment(x: np.ndarray, power: int) -> float:
    return float(np.mean(((x - x.mean()) / x.std()) ** power))


def _corr(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])
