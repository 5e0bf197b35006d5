"""Bars and settings in the simulator's units: ticks, cents, contracts.

Deployed models use this module too: no JAX beyond `jax.numpy` here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import (
    HOLE,
    REGULAR,
    ROLL,
    SESSION_END,
    SESSION_START,
    TRADED,
    EnvParams,
)
from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import regular_hours


if TYPE_CHECKING:
    from gm_jax.settings import Settings


# what the simulator itself needs to know at a decision: for impact and for stops
SIMULATOR = ("change_std_20", "mean_notional_20", "atr_14")


def bar_table(bars: Bars, settings: Settings) -> np.ndarray:
    """Return [T, 6]: open, high, low, close and gap in ticks, flags."""
    require_range(bars.high.max(), settings)
    opens = np.diff(bars.session, prepend=bars.session[:1] - 1) != 0
    columns = bar_columns(
        bars,
        close_before=np.append(bars.open[:1], bars.close[:-1]),
        regular=regular_hours(bars.time),
        opens=opens,
        ends=np.append(opens[1:], True),
    )
    return np.column_stack(columns)


def require_range(highest: float, settings: Settings) -> None:
    """Refuse prices (points) that int32 cents cannot carry.

    Raises:
        UserError: the largest position would be worth more.
    """
    ticks = highest / settings.tick_points
    if ticks * settings.max_contracts * tick_cents(settings) >= 2**31:
        raise UserError(
            f"The highest price {highest} makes a position worth more than int32 cents can hold; "
            "set a smaller max_contracts or point_value_usd."
        )


def bar_columns(bars: Any, close_before: Any, regular: Any, opens: Any, ends: Any) -> tuple:
    """Return open, high, low, close and gap in ticks, and flags: of many bars, or of one.

    Args:
        bars: with arrays [T], or numbers, in its fields.
        close_before: points, of the bar before.
        regular: opens between 09:30 and 16:00 New York.
        opens: is its session's first.
        ends: is its session's last.
    """
    points = (bars.open, bars.high, bars.low, bars.close, close_before)
    first, high, low, last, before = (np.rint(price / bars.tick) for price in points)
    flags = (
        TRADED * (bars.volume > 0)
        + REGULAR * regular
        + SESSION_START * opens
        + SESSION_END * ends
        + ROLL * bars.roll
        + HOLE * bars.hole
    )
    return first, high, low, last, first - before, flags


def impact(close: Any, deviation: Any, notional: Any) -> Any:
    """Return σ20 · √(price / mean notional20), ticks, of many bars or of one.

    Args:
        close: points.
        deviation: σ20, ticks.
        notional: mean of 20 bars' volume × price, contracts × points; infinite if not known.
    """
    return deviation * np.sqrt(close / notional)


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
    weights = {
        name.removeprefix("reward_"): weight
        for name, weight in vars(settings).items()
        if name.startswith("reward_")
    }
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
