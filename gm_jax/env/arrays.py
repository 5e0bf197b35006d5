"""From bars on the host to market arrays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gm_jax.env.core import Team
from gm_jax.env.rewards import TERMS
from gm_jax.env.types import (
    HOLE,
    REGULAR,
    ROLL,
    SESSION_END,
    SESSION_START,
    TRADED,
    EnvParams,
    Market,
)
from gm_jax.errors import UserError
from gm_jax.market import features
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import regular_hours
from gm_jax.market.split import clean_runs
from gm_jax.settings import Settings


# what the simulator itself needs to know at a decision: for impact and for stops
_SIMULATOR = ("change_std_20", "mean_notional_20", "atr_14")


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
    return features.warmup((*names, *_SIMULATOR, *team.signal_names(minutes)))


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
    fitted = fit(measured, bars, team, train, episode_length)
    return Market(
        bars=jnp.asarray(measured.table, dtype=jnp.int32),
        features=jnp.asarray(measured.features, dtype=jnp.float32),
        impact=jnp.asarray(measured.impact, dtype=jnp.float32),
        atr=jnp.asarray(measured.atr, dtype=jnp.float32),
        signals=jnp.asarray(measured.signals, dtype=jnp.float32),
        mandate=jnp.asarray(everything if mandate is None else mandate, dtype=jnp.float32),
        **fitted,
    )


def measure(bars: Bars, settings: Settings, team: Team) -> Measured:
    """Return what the simulator reads of the bars, causal and without any fit.

    Raises:
        UserError: prices that int32 cents cannot carry.
    """
    names, more = settings.features, team.signal_names(bars.minutes)
    columns = features.compute((*names, *_SIMULATOR, *more), bars)
    columns[: warmup(names, bars.minutes, team)] = 0
    values, rest, signals = np.split(columns, [len(names), len(names) + len(_SIMULATOR)], axis=1)
    deviation, notional, atr = rest.T
    return Measured(
        table=_bar_table(bars, settings),
        features=values,
        impact=_impact(bars, deviation, notional),
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
    return {
        "starts": jnp.asarray(np.resize(starts, len(bars)), dtype=jnp.int32),
        "num_starts": jnp.asarray(len(starts), dtype=jnp.int32),
        "mean": jnp.asarray(values.mean(axis=0), dtype=jnp.float32),
        "scale": jnp.asarray(np.where(scale > 0, scale, 1), dtype=jnp.float32),
        "law": team.fit_law(measured.signals, train, bars.minutes),
    }


def _bar_table(bars: Bars, settings: Settings) -> np.ndarray:
    """Return [T, 6]: open, high, low, close and gap in ticks, flags."""
    points = np.stack([bars.open, bars.high, bars.low, bars.close], axis=1)
    ticks = np.rint(points / bars.tick)
    largest = settings.max_contracts * tick_cents(settings)
    if ticks.max() * largest >= 2**31:
        raise UserError(
            f"The highest price {bars.high.max()} makes a position worth more than int32 cents "
            "can hold; set a smaller max_contracts or point_value_usd."
        )
    gap = np.append(0, ticks[1:, 0] - ticks[:-1, 3])
    opens = np.diff(bars.session, prepend=bars.session[:1] - 1) != 0
    flags = (
        TRADED * (bars.volume > 0)
        + REGULAR * regular_hours(bars.time)
        + SESSION_START * opens
        + SESSION_END * np.append(opens[1:], True)
        + ROLL * bars.roll
        + HOLE * bars.hole
    )
    return np.column_stack([ticks, gap, flags])


def _impact(bars: Bars, deviation: np.ndarray, notional: np.ndarray) -> np.ndarray:
    """Return σ20 · √(price / mean notional20), [T] ticks.

    After 20 bars without volume the last known volume stands.
    """
    known = np.maximum.accumulate(np.where(notional > 0, np.arange(len(bars)), 0))
    notional = notional[known]
    share = np.divide(bars.close, notional, out=np.zeros(len(bars)), where=notional > 0)
    return deviation / bars.tick * np.sqrt(share)


def env_params(settings: Settings, episode_length: int) -> EnvParams:
    """Return the simulator's traced numbers in ticks, cents and contracts."""
    cents = {
        name: round(getattr(settings, f"{name}_usd") * 100)
        for name in ("commission", "start_equity")
    }
    tick = tick_cents(settings)
    integers = {
        **cents,
        "tick_cents": tick,
        "spread_regular": settings.spread_ticks_regular,
        "spread_other": settings.spread_ticks_other,
        "lots_small": settings.lots_small,
        "lots_large": settings.lots_large,
        "max_contracts": settings.max_contracts,
        "episode_length": episode_length,
    }
    reals = {
        "impact": settings.impact * tick,
        "max_leverage": settings.max_leverage,
        "daily_loss": settings.daily_loss,
        "max_drawdown": settings.max_drawdown,
        "ruin": settings.ruin,
        "maintenance_margin": settings.maintenance_margin,
        "stop_atr": settings.stop_atr,
        "risk_aversion": settings.risk_aversion,
    }
    weights = {name: getattr(settings, f"reward_{name}") for name in TERMS}
    return EnvParams(
        **{k: jnp.asarray(v, dtype=jnp.int32) for k, v in integers.items()},
        **{k: jnp.asarray(v, dtype=jnp.float32) for k, v in reals.items()},
        reward_weights={k: jnp.asarray(v, dtype=jnp.float32) for k, v in weights.items()},
        allow_short=jnp.asarray(settings.allow_short),
        random_start=jnp.asarray(settings.random_start),
    )


def tick_cents(settings: Settings) -> int:
    """Return what one tick of one contract is worth, cents."""
    return round(settings.tick_points * settings.point_value_usd * 100)
