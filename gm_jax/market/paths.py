"""What the processes behind generated markets share: result, noise, highs and lows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gm_jax.errors import UserError
from gm_jax.market.calendar import SESSION_MINUTES


TICK = 0.25  # points
MEAN_VOLUME = 1_950.0  # contracts, mean of a 5-minute bar of NQ
SESSIONS_PER_YEAR = 252  # turns annual volatilities into those of a session
PRICES = (1.0, 1e7)  # points; what a path may reach
_VOLUME_SD = 0.25  # of log volume

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
    state: np.ndarray | None  # [T] f64, the hidden truth, see `World`


def streams(seed: int) -> Streams:
    """Return independent noise for each component of a market, by name.

    Every name opens its own stream, so a parameter that changes the use of one component leaves
    the numbers of the others as they were. Within a stream a longer draw begins with the shorter.
    """
    return lambda name: np.random.default_rng([seed, zlib.crc32(name.encode())])


def bar_sd(annual_volatility: float, minutes: int) -> float:
    """Return the standard deviation of a bar's log return, a fraction."""
    return annual_volatility / float(np.sqrt(SESSIONS_PER_YEAR * SESSION_MINUTES / minutes))


def log_path(start_price: float, move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up log returns; every bar opens at the last close.

    Args:
        start_price: first open, points, rounded to a tick.
        move: [T] log return of each bar.

    Returns:
        The pair begin, end, each [T]: log prices at open and close.

    Raises:
        UserError: the price leaves `PRICES`.
    """
    start = np.log(np.rint(start_price / TICK) * TICK)
    end = start + np.cumsum(move)
    low, high = np.log(PRICES)
    refuse_far((end < low) | (end > high))
    return np.concatenate([[start], end[:-1]]), end


def refuse_far(outside: np.ndarray) -> None:
    """Make sure that the price stays where ticks and contracts mean something.

    Args:
        outside: [T] bool, whether a bar leaves `PRICES`.

    Raises:
        UserError: one does.
    """
    if outside.any():
        low, high = PRICES
        raise UserError(
            f"The generated price leaves {low:,.0f} to {high:,.0f} points at bar "
            f"{int(np.argmax(outside)):,}: ask for fewer bars, a smaller drift or volatility."
        )


def on_ticks(log_price: np.ndarray) -> np.ndarray:
    """Return prices in points on whole ticks, at least one, from log prices.

    Rounding is monotone: what bounds the log prices bounds the rounded prices.
    """
    return np.maximum(np.rint(np.exp(log_price) / TICK), 1.0) * TICK


def ar1(sd: float, half_life: float, noise: np.ndarray) -> np.ndarray:
    """Return a stationary AR(1), [T] f64: x[t] = phi x[t-1] + sd √(1−phi²) noise[t].

    Args:
        sd: stationary standard deviation.
        half_life: steps after which half of a deviation is left; phi = 2^(−1/half_life).
        noise: [T] independent, mean 0, variance 1.
    """
    phi = 2.0 ** (-1.0 / half_life)
    innovation = sd * np.sqrt(1 - phi**2) * noise
    innovation[0] = sd * noise[0]
    return decaying_sum(innovation, phi)


def decaying_sum(x: np.ndarray, phi: float) -> np.ndarray:
    """Return y[t] = phi y[t-1] + x[t], [T] f64, without a loop over bars.

    1 / (1 − phi L) = (1 + phi L)(1 + phi² L²)(1 + phi⁴ L⁴)… with the lag operator L.

    Args:
        x: [T] f64.
        phi: in (0, 1).
    """
    y, lag, weight = x.copy(), 1, phi
    while lag < len(y) and weight > 1e-20:
        y[lag:] += weight * y[:-lag]
        lag, weight = 2 * lag, weight**2
    return y


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


def even_volume(bars: int, mean: float, stream: Streams) -> np.ndarray:
    """Draw log-normal volumes without memory, [T] f64, whole contracts, at least 1.

    Args:
        bars: T.
        mean: contracts a bar, before rounding.
        stream: noise by name.
    """
    noise = _VOLUME_SD * stream("volume").standard_normal(bars) - _VOLUME_SD**2 / 2
    return whole_contracts(mean * np.exp(noise))


def whole_contracts(volume: np.ndarray) -> np.ndarray:
    """Round volumes to whole contracts, at least 1."""
    return np.maximum(np.rint(volume), 1.0)
