"""Probe worlds: tiny markets and a one-verb team whose critic values are known in closed form.

A tick is worth 0.5 bp of the account. The team is always long one contract, or as its first agent
says; there are no costs, so the reward is the next bar's move.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from gm_jax.env import tactical, units
from gm_jax.env.types import TRADED, Market, Order
from gm_jax.mappo.validation import Segments
from gm_jax.run.setup import hyper, static_config
from gm_jax.systems import TACTICAL


BARS, PRICE = 4_000, 100_000  # PRICE in ticks
FREE = {
    "commission_usd": 0.0,
    "spread_ticks_regular": 0,
    "spread_ticks_other": 0,
    "impact": 0.0,
    "reward_drawdown": 0.0,
    "reward_shortfall": 0.0,
    "random_start": False,
    "daily_loss": 1.0,
    "max_drawdown": 1.0,
    "ruin": 0.1,
    "maintenance_margin": 0.0,
    "max_leverage": 1e6,
}


@dataclasses.dataclass(frozen=True)  # equal ones compile once
class LongTeam:
    """Three agents; the position is 1, or with `chosen` 1 where the first agent does not HOLD."""

    chosen: bool

    AGENTS, ACTIONS, TERMS = tactical.AGENTS, tactical.ACTIONS, tactical.TERMS
    NEUTRAL, RANDOM_BITS = tactical.NEUTRAL, tactical.RANDOM_BITS
    initial, random = staticmethod(tactical.initial), staticmethod(tactical.random)
    role_values, stopped = staticmethod(tactical.role_values), staticmethod(tactical.stopped)
    follow = staticmethod(tactical.follow)

    def compose(self, state, actions, bounds, params) -> Order:
        wanted = jnp.where(actions[0] > 0, 1, 0) if self.chosen else 1
        trade = jnp.int32(wanted) - state.position
        return Order(trade=trade, wanted=trade, controls=state.controls)

    def masks(self, state, bounds, params):
        return jnp.ones((3, 5), dtype=bool)


def market(moves: np.ndarray, signal: np.ndarray) -> Market:
    """Build bars that open at the last close and move by `moves` ticks; `signal` is seen before."""
    close = PRICE + np.cumsum(moves)
    open_ = np.concatenate([[PRICE], close[:-1]])
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    flags = np.full(len(moves), TRADED)
    zero = np.zeros(len(moves))
    bars = np.stack([open_, high, low, close, zero, flags], axis=1)
    return Market(
        bars=jnp.asarray(bars, dtype=jnp.int32),
        features=jnp.asarray(signal[:, None], dtype=jnp.float32),
        impact=jnp.zeros(len(moves)),
        atr=jnp.ones(len(moves)),
        signals=jnp.zeros((len(moves), 0)),
        mandate=jnp.tile(jnp.float32([-1, 1]), (len(moves), 1)),
        starts=jnp.arange(len(moves), dtype=jnp.int32),
        num_starts=jnp.int32(len(moves) - 100),
        mean=jnp.zeros(1),
        scale=jnp.ones(1),
        law=None,
    )


def problem(chosen: bool = False, **changes):
    """Return (config, hyper, params, segments) of a small run with the probe team."""
    settings = TACTICAL.settings.replace(
        **FREE
        | {
            "hidden_sizes": (64, 64),
            "num_envs": 64,
            "episode_length": 20,
            "rollout_length": 20,
            "num_episodes": 200,
            "lr_critic": 3e-3,
            "lr_actor": 1e-3,
            "gamma": 0.9,
            "value_norm_decay": 0.9,
            "critic": "central",
        }
        | changes
    )
    system = dataclasses.replace(TACTICAL, team=LongTeam(chosen))
    episode = settings.episode_length
    return (
        static_config(system, settings),
        hyper(settings, 1),
        units.env_params(settings, episode),
        Segments(jnp.zeros(1, dtype=jnp.int32), jnp.ones(1, dtype=jnp.int32)),
    )
