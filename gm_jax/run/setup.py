"""From settings and bars to the arguments of the compiled program."""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax.numpy as jnp

from gm_jax.config import Settings
from gm_jax.env import arrays
from gm_jax.env.types import EnvParams, Market
from gm_jax.errors import UserError
from gm_jax.mappo.types import Config, Hyper
from gm_jax.mappo.validation import Segments
from gm_jax.market import split
from gm_jax.market.split import Split
from gm_jax.run.source import Loaded
from gm_jax.systems import System


MAX_SEGMENTS = 32  # of the validation split, played in parallel
MAX_INTERVAL = 100  # iterations that one call of the program may run


@dataclass(frozen=True)
class Setup:
    """One run, ready to be compiled."""

    system: System
    settings: Settings
    loaded: Loaded
    split: Split
    warmup: int
    episode_length: int
    market: Market
    params: EnvParams
    config: Config
    hyper: Hyper
    segments: Segments
    warnings: tuple[str, ...]


def prepare(system: System, settings: Settings, loaded: Loaded) -> Setup:
    """Split the bars, fit the scaler and lay everything out for the device.

    Raises:
        UserError: the bars do not suffice for the settings.
    """
    try:
        warmup = arrays.warmup(settings.features)
    except ValueError as error:
        raise UserError(f"`features`: {error}") from error
    parts = split.split_bars(loaded.bars, settings, warmup)
    episode, rollout = arrays.window_length(loaded.bars, parts.train, settings)
    warnings = list(loaded.warnings)
    if episode != settings.episode_length:
        warnings.append(
            f"The longest unbroken stretch of training bars is shorter than episode_length "
            f"{settings.episode_length}: windows have {episode} bars, updates every {rollout}."
        )
    first, steps = split.segments(loaded.bars, parts.validation, MAX_SEGMENTS)
    contract = settings.max_contracts * arrays.tick_cents(settings)
    return Setup(
        system=system,
        settings=settings,
        loaded=loaded,
        split=parts,
        warmup=warmup,
        episode_length=episode,
        market=arrays.build_market(loaded.bars, settings.features, parts.train, episode, contract),
        params=arrays.env_params(settings, episode),
        config=static_config(system, settings, episode, rollout),
        hyper=hyper(settings, episode // rollout),
        segments=Segments(jnp.asarray(first), jnp.asarray(steps)),
        warnings=tuple(warnings),
    )


def static_config(system: System, settings: Settings, episode: int, rollout: int) -> Config:
    """Return what shapes the program."""
    return Config(
        system=system,
        num_envs=settings.num_envs,
        rollout_length=rollout,
        num_rollouts=episode // rollout,
        num_minibatches=settings.num_minibatches,
        num_epochs=settings.num_epochs,
        hidden_sizes=settings.hidden_sizes,
        layer_norm=settings.layer_norm,
        central=settings.critic == "central",
        bfloat16=settings.precision == "bfloat16",
        huber=settings.value_loss == "huber",
        interval=MAX_INTERVAL,
    )


def hyper(settings: Settings, updates_per_iteration: int) -> Hyper:
    """Return what the program traces."""
    own = {"num_updates", "validate_every"}
    numbers = {f.name: getattr(settings, f.name) for f in fields(Hyper) if f.name not in own}
    return Hyper(
        **{k: jnp.float32(v) for k, v in numbers.items()},
        num_updates=jnp.float32(settings.num_episodes * updates_per_iteration),
        validate_every=jnp.int32(settings.validate_every),
    )
