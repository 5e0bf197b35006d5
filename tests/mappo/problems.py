"""Small problems that the learner's tests share."""

from functools import lru_cache

from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import TACTICAL


SMALL = {
    "hidden_sizes": (16, 16),
    "num_envs": 8,
    "episode_length": 100,
    "rollout_length": 50,
    "num_minibatches": 2,
    "num_epochs": 2,
    "num_episodes": 4,
    "validate_every": 2,
    "market_bars": 6_000,
}


@lru_cache
def planted_setup(market: str = "planted", data_seed: int = 0, **changes: object) -> Setup:
    """Return a tiny tactical problem on a generated market."""
    settings = TACTICAL.settings.replace(**(SMALL | changes))
    loaded = load(Source(market=market, seed=data_seed), settings, TACTICAL.minutes)
    return prepare(TACTICAL, settings, loaded)
