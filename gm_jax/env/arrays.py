"""From bars on the host to market arrays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gm_jax.env.team import Team
from gm_jax.env.types import Market
from gm_jax.env.units import SIMULATOR, bar_table, impact
from gm_jax.errors import UserError
from gm_jax.market import features
from gm_jax.market.bars import Bars
from gm_jax.market.split import clean_runs
from gm_jax.settings import Settings


@dataclass(frozen=True)
class Measured:
    """What the simulator reads of bars, before anything is fitted."""

    table: np.ndarray  # [T, 6] i64, see `Market.bars`
    features: np.ndarray  # [T, F] f64
    impact: np.ndarray  # [T] f64, ticks
    atr: np.ndarray  # [T] f64, ticks
    signals: np.ndarray  # [T, M] f64


def warmup(names: Sequence[str], minutes: int, team: Team) -> int:
    """Return the first bar at which every feature, cost and signal is known."""
    return features.warmup((*names, *SIMULATOR, *team.signal_names(minutes)))


def window_length(bars: Bars, train: tuple[int, int], settings: Settings) -> tuple[int, int]:
    """Return (episode_length, rollout_length) that fit the longest unbroken stretch of training.

    Where the stretch is shorter than `episode_length`, windows shrink to the largest multiple of
    `rollout_length` that fits, or to the stretch itself.
    """
    longest = int(clean_runs(bars, train).max())
    if longest >= settings.episode_length:
        return settings.episode_length, settings.rollout_length
    if longest < 2:
        raise UserError(
            f"The training split {train} has no three bars in a row without a hole or a roll; "
            "give a longer file."
        )
    if longest >= settings.rollout_length:
        return longest - longest % settings.rollout_length, settings.rollout_length
    return longest, longest


def build_market(
    bars: Bars,
    settings: Settings,
    team: Team,
    train: tuple[int, int],
    episode_length: int,
    mandate: np.ndarray | None = None,
) -> Market:
    """Return the market on the device, with everything fitted on the training bars alone.

    Args:
        bars: T bars.
        settings: `features`, F of them, in the order of the networks' inputs; sizes and money.
        team: whose signals and law it carries.
        train: half-open range of training bars.
        episode_length: steps of a training window; none contains a hole or a roll.
        mandate: [T, 2] f64, see `Market.mandate`; everything is admitted without one.

    Raises:
        UserError: prices that int32 cents cannot carry.
    """
    measured = measure(bars, settings, team)
    everything = np.tile([-1.0, 1.0], (len(bars), 1))
    # in their types already: `jnp.asarray(x, dtype)` compiles a conversion for every shape
    host = {
        "bars": measured.table.astype(np.int32),
        "features": measured.features.astype(np.float32),
        "impact": measured.impact.astype(np.float32),
        "atr": measured.atr.astype(np.float32),
        "signals": measured.signals.astype(np.float32),
        "mandate": (everything if mandate is None else mandate).astype(np.float32),
    }
    return Market(**jax.device_put(host), **fit(measured, bars, team, train, episode_length))


def measure(bars: Bars, settings: Settings, team: Team) -> Measured:
    """Return what the simulator reads of the bars, causal and without any fit.

    Raises:
        UserError: prices that int32 cents cannot carry.
    """
    names, more = settings.features, team.signal_names(bars.minutes)
    columns = features.compute((*names, *SIMULATOR, *more), bars)
    columns[: warmup(names, bars.minutes, team)] = 0
    values, rest, signals = np.split(columns, [len(names), len(names) + len(SIMULATOR)], axis=1)
    deviation, notional, atr = rest.T
    # after 20 bars without volume the last known volume stands
    known = notional[np.maximum.accumulate(np.where(notional > 0, np.arange(len(bars)), 0))]
    return Measured(
        table=bar_table(bars, settings),
        features=values,
        impact=impact(bars.close, deviation / bars.tick, np.where(known > 0, known, np.inf)),
        atr=atr / bars.tick,
        signals=signals,
    )


def fit(
    measured: Measured, bars: Bars, team: Team, train: tuple[int, int], episode_length: int
) -> dict[str, Any]:
    """Return the fields of `Market` that depend on where training lies: windows, scaler, law."""
    first, end = train
    values = measured.features[first:end]
    scale = values.std(axis=0)
    starts = np.flatnonzero(clean_runs(bars, train) >= episode_length)
    host = {
        "starts": np.resize(starts, len(bars)).astype(np.int32),
        "num_starts": np.int32(len(starts)),
        "mean": values.mean(axis=0).astype(np.float32),
        "scale": np.where(scale > 0, scale, 1).astype(np.float32),
    }
    return jax.device_put(host) | {"law": team.fit_law(measured.signals, train, bars.minutes)}
