"""Pace: how long one launch of the program lasts, and how often a run is saved."""

from __future__ import annotations


INTERVAL_SECONDS = 2.0  # how long one launch should take: what Ctrl-C and the screen wait for
SAVE_SECONDS = 20.0  # at most this much work is lost to a power cut
MAX_INTERVAL = 100  # iterations that one call of the program may run


def next_count(count: int, seconds: float, left: int) -> int:
    """Return how many iterations the next launch runs: the results do not depend on it.

    Args:
        count: iterations of the last launch.
        seconds: it took.
        left: iterations that remain.
    """
    wanted = round(count * INTERVAL_SECONDS / max(seconds, 1e-3))
    return max(1, min(wanted, 2 * count, MAX_INTERVAL, left))
