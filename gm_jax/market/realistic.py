"""The realistic market: volatility, tails, gaps and volume of NQ, around prices without direction.

Everything is made on a grid of five minutes; longer bars are exact aggregates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gm_jax.market.calendar import SESSION_MINUTES, roll_session
from gm_jax.market.paths import (
    MEAN_VOLUME,
    PRICES,
    SESSIONS_PER_YEAR,
    TICK,
    Paths,
    Streams,
    ar1,
    decaying_sum,
    extremes,
    refuse_far,
    whole_contracts,
)
from gm_jax.market.rolls import EXPIRY_JUMP


STEP_MINUTES = 5
STEPS = SESSION_MINUTES // STEP_MINUTES  # a session

# Measured on NQ, by half hour from 18:00 New York, over the mean: absolute return and volume.
# fmt: off
_RETURN_PROFILE = (
    .90, .51, .61, .58, .75, .67, .63, .65, .56, .49, .46, .43, .44, .45, .55, .58, .77, .66, 1.14,
    .87, .98, .75, .69, .69, .73, .71, .91, .82, .86, 1.50, .93, 2.82, 2.31, 1.95, 1.69, 1.56, 1.45,
    1.31, 1.44, 1.39, 1.51, 1.43, 1.46, 1.77, 1.01, .54,
)
_VOLUME_PROFILE = (
    .26, .15, .17, .17, .25, .21, .21, .21, .18, .15, .14, .13, .13, .13, .16, .17, .25, .23, .46,
    .37, .41, .31, .30, .28, .30, .31, .39, .40, .56, 1.03, .98, 5.54, 4.10, 3.29, 2.76, 2.39, 2.08,
    1.84, 1.89, 1.80, 2.01, 2.00, 2.14, 3.47, 1.08, .25,
)
# fmt: on
_HALF_HOUR = 30 // STEP_MINUTES  # steps
_OPENING = (15 * 60 + 30) // 30  # half hour of 09:30
_OPENING_RETURN, _OPENING_VOLUME = 3.9, 7.9  # its first five minutes, over the mean

_LEVELS = (0.69, 1.0, 1.475)  # session volatility in the three states of the chain
_CHAIN = ((0.943, 0.057, 0.0), (0.064, 0.876, 0.060), (0.0, 0.077, 0.923))
_SESSION_SD, _SESSION_PHI = 0.24, 0.72  # of log volatility, from session to session
_FAST = ((0.22, 8.0), (0.10, 100.0))  # of log volatility: sd, half-life in steps
_HALF_HOUR_SD = 0.28  # of log volatility
_LEVERAGE, _LEVERAGE_HALF_LIFE = -0.014, 276.0  # log volatility per shock; steps
_SHOCK_DF = 9.0
_JUMPS, _JUMP_SD, _JUMP_DF = 0.08, 5.5, 4.0  # a session; in step deviations
_BREAK_DF, _BREAK_SCALE = 2.3, 2.9e-4
_WEEKEND_DF, _WEEKEND_SCALE = 2.5, 14e-4
_GAP_LIMIT, _STEP_LIMIT = 0.03, 0.10  # fractions of the price
_OPEN_TICKS = 2.1  # mean size of the move from a close to the next open
_VOLUME_POWER = 0.825  # of local volatility
_VOLUME_SD, _VOLUME_HALF_LIFE = 0.26, 5.0  # of log volume; steps


@dataclass(frozen=True)
class _Volatility:
    """S sessions of STEPS steps: how large the next moves are, known before they are made."""

    log_local: np.ndarray  # [S, STEPS] f64, log volatility without the time of day
    step_sd: np.ndarray  # [S, STEPS] f64, of a step's return, a fraction


def realistic(
    session: np.ndarray,
    minutes: int,
    stream: Streams,
    *,
    annual_volatility: float,
    start_price: float,
    annual_drift: float = 0.0,
) -> Paths:
    """Generate prices that look like NQ and, without drift, are a martingale.

    The sequence open[0], close[0], open[1], close[1], … is in points a martingale for whoever sees
    all bars so far, volumes and extremes included: each move is (price at the session's start) ×
    (deviation known before) × (fresh symmetric noise), rounded to whole ticks up or down at random
    so that the mean is kept; moves from a close to the next open inside a session are symmetric
    noise in ticks. Hence no rule that acts on past bars has an expected gross profit.

    Args:
        session: [T] i64, trade dates of the bars, full sessions but perhaps for the last.
        minutes: length of a bar, a multiple of 5 that divides a session.
        stream: noise by name.
        annual_volatility: of returns inside sessions, root mean square, a fraction; 252 sessions
            make a year.
        start_price: price before the first gap, points.
        annual_drift: expected change of price, spread over all steps, a fraction of the price.

    Raises:
        UserError: the price leaves its range.
    """
    days = np.unique(session)
    mixing = np.sqrt((_SHOCK_DF - 2) / stream("tail").chisquare(_SHOCK_DF, (len(days), STEPS)))
    shock = mixing * stream("shock").standard_normal((len(days), STEPS))
    volatility = _volatility(shock, annual_volatility, stream)

    drift = annual_drift / (SESSIONS_PER_YEAR * STEPS)
    step = volatility.step_sd * (shock + _jumps(len(days), stream))
    step = np.clip(step, -_STEP_LIMIT, _STEP_LIMIT) + drift
    path, scale = _walk(gaps(days, stream), step, start_price, stream)

    open_, close = path[..., 0].ravel(), path[..., 1].ravel()
    reach = (scale[:, None] * volatility.step_sd * mixing).ravel()
    high, low = extremes(open_, close, reach, stream)
    high, low = np.rint(high), np.maximum(np.rint(low), 1.0)
    volume = _volume(volatility.log_local, stream)
    steps = Paths(
        open_ * TICK, high * TICK, low * TICK, close * TICK, volume, belief=None, state=None
    )
    bars = _joined(steps, minutes // STEP_MINUTES, len(session))
    refuse_far((bars.low < PRICES[0]) | (bars.high > PRICES[1]))
    return bars


def _volatility(shock: np.ndarray, annual: float, stream: Streams) -> _Volatility:
    """Return the volatility of every step from log-linear recursions and the time of day."""
    days = len(shock)
    steps = days * STEPS
    local = np.repeat(_session_log_volatility(days, stream), STEPS)
    for k, (sd, half_life) in enumerate(_FAST):
        local += ar1(sd, half_life, stream(f"fast {k}").standard_normal(steps))
    half_hours = _HALF_HOUR_SD * stream("half hour").standard_normal(steps // _HALF_HOUR)
    local += np.repeat(half_hours, _HALF_HOUR)

    phi = 2.0 ** (-1.0 / _LEVERAGE_HALF_LIFE)
    past = np.concatenate([[0.0], shock.ravel()[:-1]])  # a shock moves only what comes after it
    local += decaying_sum(_LEVERAGE * past, phi)

    profile = _fine(_RETURN_PROFILE, _OPENING_RETURN, power=2)
    profile /= np.sqrt(np.mean(profile**2))
    log_local = local.reshape(days, STEPS)
    mean_square = _mean_power(2.0)
    base = annual / np.sqrt(SESSIONS_PER_YEAR * STEPS * mean_square)
    return _Volatility(log_local, base * profile * np.exp(log_local))


def _session_log_volatility(days: int, stream: Streams) -> np.ndarray:
    """Return each session's log volatility, [S] f64: a three-state chain times an AR(1) in logs."""
    law = np.cumsum([*_CHAIN, _stationary()], axis=1)
    law[:, -1] = 1.0
    state, states = len(_LEVELS), np.empty(days, int)  # the last row is the law of the first state
    for s, u in enumerate(stream("chain").random(days)):
        states[s] = state = int(np.searchsorted(law[state], u, side="right"))
    half_life = -np.log(2) / np.log(_SESSION_PHI)
    wave = ar1(_SESSION_SD, half_life, stream("session").standard_normal(days))
    return np.log(_LEVELS)[states] + wave


def _stationary() -> np.ndarray:
    """Return the shares of time the chain spends in its states, [3] f64."""
    return np.linalg.matrix_power(np.array(_CHAIN), 4096)[0]


def _mean_power(power: float) -> float:
    """Return E[exp(power × log local volatility)], the shocks' part taken as normal."""
    phi = 2.0 ** (-1.0 / _LEVERAGE_HALF_LIFE)
    variance = _SESSION_SD**2 + _HALF_HOUR_SD**2 + sum(sd**2 for sd, _ in _FAST)
    variance += _LEVERAGE**2 / (1 - phi**2)
    levels = np.dot(_stationary(), np.power(_LEVELS, power))
    return float(levels * np.exp(power**2 * variance / 2))


def _fine(profile: tuple[float, ...], opening: float, power: int) -> np.ndarray:
    """Return a half-hour profile by steps, [STEPS] f64; only 09:30 has a shape of its own.

    The first step of 09:30 takes `opening`; the others give way so that the half hour's mean
    power-th power stays.
    """
    fine = np.repeat(np.asarray(profile), _HALF_HOUR)
    first, rest = _OPENING * _HALF_HOUR, _HALF_HOUR - 1
    left = _HALF_HOUR * profile[_OPENING] ** power - opening**power
    fine[first] = opening
    fine[first + 1 : first + _HALF_HOUR] = (left / rest) ** (1 / power)
    return fine


def _jumps(days: int, stream: Streams) -> np.ndarray:
    """Return rare large moves, [S, STEPS] f64, in deviations of their step."""
    jumps = stream("jump size").standard_t(_JUMP_DF, (days, STEPS))
    jumps *= _JUMP_SD * np.sqrt((_JUMP_DF - 2) / _JUMP_DF)
    jumps[stream("jump time").random((days, STEPS)) >= _JUMPS / STEPS] = 0.0
    return jumps


def gaps(days: np.ndarray, stream: Streams) -> np.ndarray:
    """Return the moves from the last close to each session's open, [S] f64, fractions of the price.

    Args:
        days: [S] i64, trade dates as days since 1970.
        stream: noise by name.
    """
    daily = _BREAK_SCALE * stream("break").standard_t(_BREAK_DF, len(days))
    weekend = _WEEKEND_SCALE * stream("weekend").standard_t(_WEEKEND_DF, len(days))
    monday = np.diff(days, prepend=days[0] - 3) > 1
    gap = np.where(monday, weekend, daily)
    # Beyond this an expiry week's gap would be taken for a change of contract; there is none here.
    limit = np.where(roll_session(days), 0.9 * EXPIRY_JUMP, _GAP_LIMIT)
    return np.clip(gap, -limit, limit)


def _walk(
    gap: np.ndarray, step: np.ndarray, start_price: float, stream: Streams
) -> tuple[np.ndarray, np.ndarray]:
    """Add up moves in whole ticks.

    Args:
        gap: [S] f64, from the last close to the session's open, fractions of the price.
        step: [S, STEPS] f64, from open to close.
        start_price: points.
        stream: noise by name.

    Returns:
        path: [S, STEPS, 2] f64, opens and closes in ticks.
        scale: [S] f64, ticks, the last close before each session.
    """
    move = np.zeros((*step.shape, 2))  # scales with the price
    move[:, 0, 0], move[..., 1] = gap, step
    fixed = np.zeros_like(move)  # in ticks at any price
    fixed[:, 1:, 0] = stream("open").laplace(0.0, _OPEN_TICKS, step.shape)[:, 1:]
    fixed += stream("rounding").random(move.shape)  # floor(x + u) has mean x

    path, scale = np.empty_like(move), np.empty(len(step))
    price = float(np.rint(start_price / TICK))
    for s in range(len(step)):
        scale[s] = price
        moves = np.floor(price * move[s] + fixed[s])
        path[s] = price + np.cumsum(moves).reshape(STEPS, 2)
        price = float(path[s, -1, 1])
    return path, scale


def _volume(log_local: np.ndarray, stream: Streams) -> np.ndarray:
    """Return the volume of each step, [S * STEPS] f64: time of day, local volatility and noise."""
    noise = stream("volume").standard_normal(log_local.size)
    noise = ar1(_VOLUME_SD, _VOLUME_HALF_LIFE, noise).reshape(log_local.shape)
    mean = _mean_power(_VOLUME_POWER) * np.exp(_VOLUME_SD**2 / 2)
    profile = _fine(_VOLUME_PROFILE, _OPENING_VOLUME, power=1)
    volume = MEAN_VOLUME / mean * profile * np.exp(_VOLUME_POWER * log_local + noise)
    return whole_contracts(volume).ravel()


def _joined(steps: Paths, n: int, bars: int) -> Paths:
    """Join every n steps to a bar and keep the first `bars`."""

    def grouped(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, n)[:bars]

    return Paths(
        open=grouped(steps.open)[:, 0].copy(),
        high=grouped(steps.high).max(axis=1),
        low=grouped(steps.low).min(axis=1),
        close=grouped(steps.close)[:, -1].copy(),
        volume=grouped(steps.volume).sum(axis=1),
        belief=None,
        state=None,
    )
