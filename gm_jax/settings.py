"""Settings: one flat table per system; every number a user may change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

from gm_jax.errors import UserError


@dataclass(frozen=True)
class Settings:
    """All settings of one system; the defaults are the tactical ones.

    Naming an instrument sets its point value and commission too. Settings are plain data:
    `systems.System` holds what is code, `env.types.EnvParams` and `mappo.types.Hyper` what the
    program traces.
    """

    # length of the run
    num_episodes: int = 200  # iterations: one window in every environment each
    episode_length: int = 1000  # bars a window
    num_envs: int = 64
    rollout_length: int = 125  # bars between two updates, divides episode_length
    num_minibatches: int = 4
    num_epochs: int = 4
    validate_every: int = 10  # iterations
    seed: int = 0

    # networks
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    layer_norm: int = 0  # LayerNorm after that many first layers
    critic: str = "central"  # central (MAPPO) or local (IPPO)
    precision: str = "float32"  # of the matrix products: float32, tensorfloat32 or bfloat16
    initial_neutral: float = (
        0.9  # first probability of each agent's neutral actions, all being legal
    )

    # learning
    lr_actor: float = 3e-4
    lr_critic: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    ent_coef: float = 0.003  # at the start, then linearly to
    ent_coef_final: float = 0.0003
    target_kl: float = 0.02
    max_grad_norm: float = 0.5
    value_loss: str = "huber"  # or squared
    huber_delta: float = 10.0  # standard deviations of the return
    value_norm_decay: float = 0.99  # per rollout

    # data
    features: tuple[str, ...] = (
        "return_60",
        "volatility_20",
        "volume_10",
        "momentum_5",
        "rsi_14",
        "price_sma_20",
    )
    split: tuple[float, ...] = (0.7, 0.15, 0.15)  # training, validation, test
    purge_bars: int = 20
    embargo_sessions: int = 1
    market_bars: int = 100_000  # of a generated market
    market_parameters: Mapping[str, float] = field(default_factory=dict)  # of a generated market

    # instrument and account
    instrument: str = "MNQ"
    tick_points: float = 0.25
    point_value_usd: float = 2.0
    commission_usd: float = 0.75  # per contract and side
    start_equity_usd: float = 100_000.0
    lots_small: int = 1
    lots_large: int = 3
    max_contracts: int = 6
    allow_short: bool = False
    random_start: bool = True

    # costs
    spread_ticks_regular: int = 1  # 09:30-16:00 New York
    spread_ticks_other: int = 2
    impact: float = 0.5  # Y of Y · σ20 · √share

    # limits
    max_leverage: float = 3.0  # × equity
    daily_loss: float = 0.03  # of the session's opening equity
    max_drawdown: float = 0.25
    ruin: float = 0.40  # of the start equity
    maintenance_margin: float = 0.08  # of notional
    stop_atr: float = 0.0  # distance in ATR14, 0 = off

    # reward, weights of the terms beside the change of equity
    reward_drawdown: float = 0.05
    reward_shortfall: float = 0.1
    reward_stance: float = 2.0  # bp a nat
    risk_aversion: float = 0.0

    # report
    target_reward: float = 100.0  # bp a window
    target_sharpe: float = 2.0
    target_drawdown: float = 0.15
    walk_forward: int = 0  # folds, 0 = none
    null_copies: int = 0  # markets without direction to train on beside, 0 = none

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for key, wanted in chain(_out_of_range(self), _at_odds(self)):
            raise UserError(f"`{key}` is {getattr(self, key)!r}, expected {wanted}.")

    def replace(self, **changes: Any) -> Settings:
        """Return a checked copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {
            k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v
            for k, v in ((f.name, getattr(self, f.name)) for f in fields(self))
        }


# what is asked for beside a run: it changes nothing that the run learns
ANALYSES = ("walk_forward", "null_copies")

_ABOVE_ZERO = (
    *("num_episodes", "episode_length", "num_envs", "rollout_length", "num_minibatches"),
    *("num_epochs", "validate_every", "lots_small", "max_contracts", "market_bars"),
    *("lr_actor", "lr_critic", "clip_eps", "target_kl", "max_grad_norm", "huber_delta"),
    *("tick_points", "point_value_usd", "start_equity_usd", "max_leverage"),
)
_NOT_NEGATIVE = (
    *("ent_coef", "ent_coef_final", "purge_bars", "embargo_sessions", "commission_usd"),
    *("spread_ticks_regular", "spread_ticks_other", "impact", "stop_atr", "risk_aversion"),
    *("reward_drawdown", "reward_shortfall", "reward_stance", "layer_norm"),
    *ANALYSES,
)
_SHARES = (
    *("gamma", "gae_lambda", "value_norm_decay", "daily_loss", "max_drawdown", "ruin"),
    *("maintenance_margin", "target_drawdown"),
)
# what naming an instrument sets: value of a point, commission per contract and side
INSTRUMENTS = {
    "MNQ": {"point_value_usd": 2.0, "commission_usd": 0.75},
    "NQ": {"point_value_usd": 20.0, "commission_usd": 2.25},
}
_MOST = {
    **{"spread_ticks_regular": 1_000, "spread_ticks_other": 1_000, "commission_usd": 1_000},
    **{"walk_forward": 50, "null_copies": 10_000},
}
_CHOICES = {
    "instrument": tuple(INSTRUMENTS),
    "critic": ("central", "local"),
    "precision": ("float32", "tensorfloat32", "bfloat16"),
    "value_loss": ("huber", "squared"),
}
_LARGEST_ACCOUNT = 2**28 / 100  # USD; int32 cents leave room to grow eightfold


def _out_of_range(s: Settings) -> Iterator[tuple[str, str]]:
    """Yield each key whose value no run could use, and what is expected of it."""
    yield from ((k, "a number above 0") for k in _ABOVE_ZERO if not getattr(s, k) > 0)
    yield from ((k, "a number not below 0") for k in _NOT_NEGATIVE if not getattr(s, k) >= 0)
    yield from ((k, "a number from 0 to 1") for k in _SHARES if not 0 <= getattr(s, k) <= 1)
    yield from ((k, f"at most {most}") for k, most in _MOST.items() if getattr(s, k) > most)
    counts = ((k, getattr(s, k)) for k in _ABOVE_ZERO + _NOT_NEGATIVE)
    yield from ((k, "less than 2^31") for k, n in counts if isinstance(n, int) and n >= 2**31)
    if not 0 <= s.seed < 2**32:
        yield "seed", "a whole number from 0 to 4294967295"
    yield from (
        (k, " or ".join(known)) for k, known in _CHOICES.items() if getattr(s, k) not in known
    )
    if not s.hidden_sizes or min(s.hidden_sizes) < 1:
        yield "hidden_sizes", "a list of widths, e.g. [64,64]"
    if s.walk_forward == 1:
        yield "walk_forward", "0 for none (--walk-forward K), or 2 folds and more"
    if not 0 < s.initial_neutral < 1:
        yield "initial_neutral", "a probability between 0 and 1"
    if not s.features:
        yield "features", "at least one feature name"
    if len(set(s.features)) < len(s.features):
        yield "features", "each name once"


def _at_odds(s: Settings) -> Iterator[tuple[str, str]]:
    """Yield each key whose value does not go with the others."""
    if s.layer_norm > len(s.hidden_sizes):
        yield "layer_norm", f"at most the {len(s.hidden_sizes)} hidden layers"
    if s.episode_length % s.rollout_length:
        yield "rollout_length", f"a divisor of episode_length {s.episode_length}"
    if s.num_envs * s.rollout_length % s.num_minibatches:
        samples = s.num_envs * s.rollout_length
        yield "num_minibatches", f"a divisor of num_envs × rollout_length = {samples}"
    if len(s.split) != 3 or min(s.split) <= 0 or not math.isclose(sum(s.split), 1):
        yield "split", "three shares above 0 that add up to 1, e.g. [0.7,0.15,0.15]"
    if not s.lots_small <= s.lots_large <= s.max_contracts:
        yield (
            "lots_large",
            f"between lots_small {s.lots_small} and max_contracts {s.max_contracts}",
        )
    if s.start_equity_usd > _LARGEST_ACCOUNT:
        yield "start_equity_usd", f"at most {_LARGEST_ACCOUNT:,.0f}, money is int32 cents"
    if not _is_whole(s.tick_points * s.point_value_usd * 100):
        yield "point_value_usd", f"a tick of {s.tick_points} points worth whole cents"
    if not _is_whole(s.commission_usd * 100):
        yield "commission_usd", "whole cents"


def _is_whole(x: float) -> bool:
    return math.isclose(x, round(x), abs_tol=1e-9)
