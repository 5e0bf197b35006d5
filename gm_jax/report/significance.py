"""Significance: how much of a Sharpe ratio chance and choosing explain.

Everything here is per session, nothing annualised. γ3 and γ4 are the moments of the returns
(plain means, γ4 = 3 for a normal), Φ is the normal distribution, γ Euler's constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


STILL = 1e-12  # a deviation that is rounding
BLOCKS = 16  # of the cross-validation
MIN_BLOCKS = 4
MIN_BLOCK = 2  # sessions
MIN_MEMBERS = 8
_NORMAL = NormalDist()


def session_sharpes(returns: np.ndarray) -> np.ndarray:
    """Return mean / sample deviation along the last axis, [...] f64; at rest counts as 0.

    Args:
        returns: [..., sessions], at least two.
    """
    deviation = returns.std(axis=-1, ddof=1)
    moves = deviation > STILL
    mean = np.where(moves, returns.mean(axis=-1), 0)
    return mean / np.where(moves, deviation, 1)


def session_sharpe(returns: np.ndarray) -> float | None:
    """Return mean / sample deviation, None without deviation or under two sessions.

    Args:
        returns: [sessions].
    """
    if len(returns) < 2 or not returns.std() > STILL:
        return None
    return float(session_sharpes(returns))


def probabilistic_sharpe(returns: np.ndarray, benchmark: float = 0.0) -> float | None:
    """Return the probability that the true Sharpe ratio is above the benchmark.

    Φ((SR − SR*) · √(n − 1) / √(1 − γ3 · SR + (γ4 − 1) / 4 · SR²))

    None where the Sharpe ratio or its error does not exist.

    Args:
        returns: [sessions].
        benchmark: SR*, per session.

    Source: Bailey and López de Prado (2012), Journal of Risk 15(2).
    """
    sharpe = session_sharpe(returns)
    if sharpe is None:
        return None
    score = (returns - returns.mean()) / returns.std()
    skew, kurtosis = float((score**3).mean()), float((score**4).mean())
    variance = 1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2
    if not variance > STILL:
        return None
    return _NORMAL.cdf((sharpe - benchmark) * math.sqrt((len(returns) - 1) / variance))


def expected_maximum(sharpes_variance: float, trials: int) -> float:
    """Return the best Sharpe ratio to expect of so many trials that are worth nothing.

    √V · ((1 − γ) · Φ⁻¹(1 − 1/N) + γ · Φ⁻¹(1 − 1/(N · e))), 0 for one trial.

    Args:
        sharpes_variance: V, of the trials' Sharpe ratios, per session.
        trials: N.

    Source: Bailey and López de Prado (2014), Journal of Portfolio Management 40(5).
    """
    if trials < 2:
        return 0.0
    usual = _NORMAL.inv_cdf(1 - 1 / trials)
    extreme = _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(sharpes_variance) * ((1 - np.euler_gamma) * usual + np.euler_gamma * extreme)


def deflated_sharpe(returns: np.ndarray, trial_sharpes: Sequence[float | None]) -> float | None:
    """Return the probability that the best of many trials is better than chance makes the best.

    The probabilistic Sharpe ratio against the expected maximum; with one trial, against 0. None
    where it does not exist, or where the trials' variance is unknown.

    Args:
        returns: [sessions], of the trial that was chosen.
        trial_sharpes: Sharpe ratio of every trial, per session; the chosen one's too. None where
            unknown: such a trial counts, but says nothing about the variance.

    Source: Bailey and López de Prado (2014), Journal of Portfolio Management 40(5).
    """
    if len(trial_sharpes) < 2:
        return probabilistic_sharpe(returns)
    known = [sharpe for sharpe in trial_sharpes if sharpe is not None]
    if len(known) < 2:
        return None
    best = expected_maximum(float(np.var(known, ddof=1)), len(trial_sharpes))
    return probabilistic_sharpe(returns, best)


def pbo(performance: np.ndarray) -> float | None:
    """Return the probability that the member chosen in sample is at best average out of sample.

    By combinatorially symmetric cross-validation: sessions are cut into 16 blocks, and every half
    of the blocks chooses the member whose Sharpe ratio is highest. Counted is how often that one is
    not above the median of all members on the other half.

    None under 8 members, where no member moves, or where there are not 4 blocks of 2 sessions.

    Args:
        performance: [members, sessions], session returns.

    Source: Bailey, Borwein, López de Prado and Zhu (2016), Journal of Computational Finance 20(4).
    """
    members, sessions = performance.shape
    blocks = min(BLOCKS, sessions // MIN_BLOCK // 2 * 2)
    if members < MIN_MEMBERS or blocks < MIN_BLOCKS or performance.std(axis=1).max() <= STILL:
        return None
    halves = np.array(list(itertools.combinations(range(blocks), blocks // 2)))
    inside = np.zeros((len(halves), blocks))
    np.put_along_axis(inside, halves, 1, axis=1)
    chosen = _half_sharpes(performance, inside).argmax(axis=1)
    outside = _half_sharpes(performance, 1 - inside)
    mine = outside[np.arange(len(halves)), chosen][:, None]
    # rank among the members, in the middle of those that are equal: ω = rank / (N + 1)
    rank = (outside < mine).sum(axis=1) + ((outside == mine).sum(axis=1) + 1) / 2
    return float((rank <= (members + 1) / 2).mean())


def _half_sharpes(performance: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return each member's Sharpe ratio over some of the blocks, [halves, members] f64.

    Args:
        performance: [members, sessions].
        inside: [halves, blocks], 1 for the blocks that count, else 0.
    """
    sessions = performance.shape[1]
    starts = np.arange(inside.shape[1]) * sessions // inside.shape[1]
    moments = (np.ones((1, sessions)), performance, performance**2)
    count, total, squares = (inside @ np.add.reduceat(x, starts, axis=1).T for x in moments)
    variance = np.maximum(squares - total**2 / count, 0) / (count - 1)
    moves = variance > STILL**2
    return np.where(moves, total / count, 0) / np.sqrt(np.where(moves, variance, 1))
