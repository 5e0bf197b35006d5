"""The systems: recipes that name bars, team and settings; the trainer serves any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gm_jax.env import strategic, tactical
from gm_jax.env.team import Team
from gm_jax.settings import Settings


@dataclass(frozen=True)
class System:
    """A recipe: bar length, team of agents, default settings and what a report is held to."""

    name: str
    minutes: int
    team: Team
    settings: Settings = field(compare=False)
    quick: Mapping[str, Any] = field(compare=False)  # what a small machine trains in minutes
    targets: tuple[str, ...] = field(compare=False)  # figures of a report that have a target

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents, in the order of every agent axis."""
        return self.team.AGENTS

    @property
    def actions(self) -> tuple[str, ...]:
        """The action names by id."""
        return self.team.ACTIONS


TACTICAL = System(
    "tactical",
    minutes=5,
    team=tactical,
    settings=Settings(),
    quick={"num_episodes": 32, "hidden_sizes": (64, 64)},
    targets=("reward",),
)

STRATEGIC = System(
    "strategic",
    minutes=30,
    team=strategic,
    settings=Settings(
        num_episodes=300,
        episode_length=500,
        num_epochs=8,
        hidden_sizes=(512, 512, 256),
        layer_norm=2,
        lr_actor=1e-4,
        lr_critic=3e-4,
        gamma=0.995,
        gae_lambda=0.98,
        clip_eps=0.1,
        features=(
            *("return_8", "return_24", "return_48", "volatility_16", "volatility_32"),
            *("volume_ratio_20", "volume_trend_20", "rsi_14", "bollinger_20", "macd_12_26_9"),
            *("higher_highs_10", "lower_lows_10"),
        ),
        market_bars=40_000,
        instrument="NQ",
        point_value_usd=20.0,
        commission_usd=2.25,
        start_equity_usd=1_000_000.0,
        lots_large=2,
        max_contracts=5,
    ),
    quick={
        **{"num_episodes": 100, "hidden_sizes": (64, 64), "layer_norm": 0, "num_epochs": 4},
        **{"lr_actor": 3e-4, "lr_critic": 1e-3, "gamma": 0.98, "gae_lambda": 0.9},
    },
    targets=("sharpe_ratio", "max_drawdown"),
)

SYSTEMS = {system.name: system for system in (TACTICAL, STRATEGIC)}
