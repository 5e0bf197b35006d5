"""Resampling whole sessions: what a figure could as well have been."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np


DRAWS = 2_000
MEAN_BLOCK = 5.0  # sessions: a week
LEVEL = 0.95


@lru_cache(maxsize=4)
def stationary_bootstrap(
    sessions: int, draws: int = DRAWS, mean_block: float = MEAN_BLOCK, seed: int = 0
) -> np.ndarray:
    """Return `draws` resamples of the sessions' indices, [draws, sessions] i64.

    Blocks begin anywhere, run on around the end, and have geometric lengths, so that what depends
    on the day before mostly keeps its day before.

    Args:
        sessions: how many there are.
        draws: resamples.
        mean_block: mean length of a block, sessions.
        seed: of the draws; the same figures get the same interval.

    Source: Politis and Romano (1994), JASA 89(428).
    """
    rng = np.random.default_rng(seed)
    begins = rng.random((draws, sessions)) < 1 / mean_block
    begins[:, 0] = True
    start = rng.integers(sessions, size=(draws, sessions))
    position = np.arange(sessions)
    block = np.maximum.accumulate(np.where(begins, position, 0), axis=1)
    rows = (np.take_along_axis(start, block, axis=1) + position - block) % sessions
    rows.flags.writeable = False  # shared by every figure of these sessions
    return rows


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], sessions: int
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a statistic, None where it does not exist.

    Args:
        statistic: of resampled indices [draws, sessions], returns [draws]; NaN where undefined.
        sessions: how many there are.
    """
    values = statistic(stationary_bootstrap(sessions))
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
