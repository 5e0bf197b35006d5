"""Markets for the simulator's tests: violent ones, with everything that can happen in them."""

import jax.numpy as jnp
import numpy as np

from gm_jax.env import stances, units
from gm_jax.env.types import HOLE, REGULAR, ROLL, SESSION_END, SESSION_START, TRADED, Bounds, Market
from gm_jax.market.regimes import REGIMES
from gm_jax.settings import Settings


BARS = 8
PRICE = 60_000  # ticks: $15,000 a point, $30,000 a contract of MNQ, $300,000 of NQ
NORMAL = TRADED | REGULAR
# laws of the next bar by stance, made up; the last is the unconditional one
LAW = stances.Law(
    mean=jnp.float32([0.0, 0.1, -0.1, -0.3, 0.0, 0.0, 0.0]),
    deviation=jnp.float32([0.9, 1.0, 1.0, 2.0, 1.5, 0.6, 1.1]),
    centre=jnp.float32([0.01, -0.02, -0.03, -0.3, -0.1, 0.02]),
)


def by_hand(*rows: tuple[int, int, int, int, int], **changes) -> Market:
    """Build (open, high, low, close, flags) after a quiet bar 0, in ticks relative to PRICE."""
    rows = [(0, 0, 0, 0, NORMAL), *rows]
    rows += [(rows[-1][3],) * 4 + (NORMAL,)] * (BARS - len(rows))
    bars = np.array(rows)
    bars[:, :4] += PRICE
    gap = np.append(0, bars[1:, 0] - bars[:-1, 3])
    world = Market(
        bars=jnp.asarray(np.insert(bars, 4, gap, axis=1), dtype=jnp.int32),
        features=jnp.zeros((BARS, 1)),
        impact=jnp.full(BARS, 0.5),
        atr=jnp.full(BARS, 100.0),
        signals=jnp.zeros((BARS, 3)),
        mandate=jnp.tile(jnp.float32([-1, 1]), (BARS, 1)),
        starts=jnp.arange(BARS, dtype=jnp.int32),
        num_starts=jnp.int32(2),
        mean=jnp.zeros(1),
        scale=jnp.ones(1),
        law=LAW,
    )
    return world.replace(**{k: jnp.asarray(v, getattr(world, k).dtype) for k, v in changes.items()})


def random_market(seed: int, bars: int = 1_200, session: int = 60, features: int = 6) -> Market:
    """Draw bars with large moves, gaps, holes, rolls and bars without volume.

    A third of the sessions have a mandate; volatility and regimes have nothing to do with prices.
    """
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
    atr = rng.uniform(300, 1500, bars)
    inputs = rng.standard_normal((bars, features))
    sessions = -(-bars // session)
    sides = np.where(rng.random((sessions, 1)) < 1 / 3, rng.integers(0, 4, (sessions, 2)) / 3, 1)
    volatility = np.exp(rng.uniform(np.log(0.01), np.log(0.5), bars))
    regime = np.repeat(rng.integers(0, len(REGIMES), bars // 4 + 1), 4)[:bars]
    signals = np.stack([volatility, rng.standard_t(3, bars), regime], axis=1)
    return Market(
        bars=jnp.asarray(np.stack([open_, high, low, close, gap, flags], 1), dtype=jnp.int32),
        features=jnp.asarray(inputs, dtype=jnp.float32),
        impact=jnp.asarray(impact, dtype=jnp.float32),
        atr=jnp.asarray(atr, dtype=jnp.float32),
        signals=jnp.asarray(signals, dtype=jnp.float32),
        mandate=jnp.asarray(np.repeat(sides * [-1, 1], session, 0)[:bars], dtype=jnp.float32),
        starts=jnp.arange(bars, dtype=jnp.int32),
        num_starts=jnp.int32(100),
        mean=jnp.zeros(features),
        scale=jnp.ones(features),
        law=LAW,
    )


def bounds(low, high, flat=False, least=-(10**6), most=10**6, opens=False, unit=1.0, signals=()):
    """Return what account and market admit, given by hand."""
    contracts = (jnp.asarray(x, jnp.int32) for x in (low, high, least, most))
    bits = (jnp.asarray(x, bool) for x in (flat, opens))
    names = ("low", "high", "least", "most", "flat", "opens")
    given = dict(zip(names, (*contracts, *bits), strict=True))
    return Bounds(**given, unit=jnp.float32(unit), signals=jnp.float32(signals))


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
    return units.env_params(settings, episode_length)
