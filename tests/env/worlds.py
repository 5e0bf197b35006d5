"""Markets for the simulator's tests: violent ones, with everything that can happen in them."""

import jax.numpy as jnp
import numpy as np

from gm_jax.env import arrays
from gm_jax.env.types import HOLE, REGULAR, ROLL, SESSION_END, SESSION_START, TRADED, Market
from gm_jax.settings import Settings


def random_market(seed: int, bars: int = 1_200, session: int = 60, features: int = 6) -> Market:
    """Draw bars with large moves, gaps, holes, rolls and bars without volume."""
    rng = np.random.default_rng(seed)
    open_, close = np.empty(bars, int), np.empty(bars, int)
    price = 60_000
    for i in range(bars):
        open_[i] = price + rng.integers(-60, 61)
        close[i] = open_[i] + round(rng.standard_t(3) * 500)
        price = close[i] = max(close[i], 4_000)
        open_[i] = max(open_[i], 4_000)
    high = np.maximum(open_, close) + rng.integers(0, 80, bars)
    low = np.minimum(open_, close) - rng.integers(0, 80, bars)
    gap = np.concatenate([[0], open_[1:] - close[:-1]])
    starts = np.arange(bars) % session == 0
    flags = (
        TRADED * (rng.random(bars) > 0.03)
        + REGULAR * (rng.random(bars) > 0.5)
        + SESSION_START * starts
        + SESSION_END * np.append(starts[1:], True)
        + ROLL * (rng.random(bars) < 0.01)
        + HOLE * (rng.random(bars) < np.where(starts, 0.9, 0.01))
    )
    impact = rng.random(bars) * 3
    return Market(
        bars=jnp.asarray(np.stack([open_, high, low, close, gap, flags], 1), dtype=jnp.int32),
        features=jnp.asarray(rng.standard_normal((bars, features)), dtype=jnp.float32),
        impact=jnp.asarray(impact, dtype=jnp.float32),
        atr=jnp.asarray(rng.uniform(300, 1500, bars), dtype=jnp.float32),
        starts=jnp.arange(bars, dtype=jnp.int32),
        num_starts=jnp.int32(100),
        mean=jnp.zeros(features),
        scale=jnp.ones(features),
    )


def random_settings(rng: np.random.Generator, allow_short: bool) -> Settings:
    """Draw costs, limits and sizes."""
    small = int(rng.integers(1, 3))
    large = small + int(rng.integers(0, 3))
    return Settings(
        point_value_usd=float(rng.choice([2, 8])),
        allow_short=allow_short,
        random_start=bool(rng.integers(2)),
        lots_small=small,
        lots_large=large,
        max_contracts=large + int(rng.integers(0, 5)),
        commission_usd=int(rng.integers(0, 300)) / 100,
        spread_ticks_regular=int(rng.integers(0, 3)),
        spread_ticks_other=int(rng.integers(0, 5)),
        impact=float(rng.random()),
        start_equity_usd=float(rng.integers(30_000, 100_000)),
        max_leverage=float(rng.uniform(0.5, 12)),
        daily_loss=float(rng.uniform(0.01, 0.1)),
        max_drawdown=float(rng.uniform(0.1, 0.9)),
        ruin=float(rng.uniform(0.1, 0.8)),
        maintenance_margin=float(rng.uniform(0.02, 0.3)),
        stop_atr=float(rng.choice([0.0, 0.5, 1.5])),
    )


def params_of(settings: Settings, episode_length: int = 1_000):
    """Return the traced parameters of settings."""
    return arrays.env_params(settings, episode_length)
