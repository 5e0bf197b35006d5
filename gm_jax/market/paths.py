"""What the processes behind generated markets share: result, noise, highs and lows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


TICK = 0.25  # points
MEAN_VOLUME = 1_950.0  # contracts, mean of a 5-minute bar of NQ
SESSIONS_PER_YEAR = 252  # turns annual volatilities into those of a session

Streams = Callable[[str], np.random.Generator]


@dataclass(frozen=True)
class Paths:
    """T bars without their clock, as a process makes them. Prices lie on whole ticks."""

    open: np.ndarray  # [T] f64, points
    high: np.ndarray  # [T] f64, points
    low: np.ndarray  # [T] f64, points
    close: np.ndarray  # [T] f64, points
    volume: np.ndarray  # [T] f64, whole contracts, at least 1
    belief: np.ndarray | None  # [T] f64 in [-1, 1], see `World`


def streams(seed: int) -> Streams:
    """Return independent noise for each component of a market, by name.

    Every name opens its own stream, so a parameter that changes the use of one component leaves
    the numbers of the others as they were. Within a stream a longer draw begins with the shorter.
    """
    return lambda name: np.random.default_rng([seed, zlib.crc32(name.encode())])


def extremes(
    start: np.ndarray, end: np.ndarray, sd: np.ndarray | float, stream: Streams
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the highest and lowest value of Brownian paths with known ends.

    high = (o + c + √((c−o)² − 2 sd² ln U)) / 2, low = (o + c − √((c−o)² − 2 sd² ln U')) / 2, each
    with its exact law. High and low are drawn independently given the ends, which leaves the mean
    range exact.

    Args:
        start: [T] value at the bar's open.
        end: [T] value at its close, same unit.
        sd: [T] or one number, standard deviation of the free path over the bar, same unit.
        stream: noise by name.

    Returns:
        The pair high, low, each [T].

    Source: the reflection principle; Glasserman, Monte Carlo Methods in Financial Engineering, 6.4.
    """

    def reach(name: str) -> np.ndarray:
        log_u = np.log1p(-stream(name).random(len(start)))  # 1 - u lies in (0, 1]
        return np.sqrt((end - start) ** 2 - 2.0 * np.square(sd) * log_u)

    return (start + end + reach("high")) / 2, (start + end - reach("low")) / 2


def whole_contracts(volume: np.ndarray) -> np.ndarray:
    """Round volumes to whole contracts, at least 1."""
    return np.maximum(np.rint(volume), 1.0)
