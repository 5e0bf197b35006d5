"""From settings and bars to the arguments of the compiled program."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env import arrays, units
from gm_jax.env.types import EnvParams, Market
from gm_jax.errors import UserError
from gm_jax.mappo.scaling import Scaler
from gm_jax.mappo.types import Config, Hyper
from gm_jax.mappo.validation import Segments
from gm_jax.market import features, split
from gm_jax.market.bars import Bars
from gm_jax.market.regimes import REGIME_WINDOW, labelling, unlabelled
from gm_jax.market.split import Split
from gm_jax.run import pace
from gm_jax.run.source import Loaded
from gm_jax.settings import Settings
from gm_jax.systems import System


MAX_SEGMENTS = 32  # of the validation split, played in parallel
MICRO_ROWS = 500  # of a CPU: three agents' activations of one layer, 1.5 MB at 256 wide
COVERED = 0.8  # share of training bars that windows should reach


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

    @cached_property
    def scaler(self) -> Scaler:
        """What the networks' features are centred on and divided by."""
        mean, scale = (np.asarray(x, np.float64) for x in (self.market.mean, self.market.scale))
        return Scaler(mean, scale)

    @cached_property
    def regimes(self) -> np.ndarray:
        """The regime known at the close of each bar, [T] i64 index into REGIMES."""
        name = labelling(self.system.minutes)
        return features.compute([name], self.loaded.bars)[:, 0].astype(np.int64)

    def unlabelled(self, span: tuple[int, int]) -> int:
        """Return how many bars of a span are NORMAL in `regimes` for want of earlier bars."""
        known = unlabelled(REGIME_WINDOW[self.system.minutes], len(self.loaded.bars))
        return max(0, min(known, span[1]) - span[0])


def prepare(system: System, settings: Settings, loaded: Loaded) -> Setup:
    """Split the bars, fit the scaler and lay everything out for the device.

    Raises:
        UserError: the bars do not suffice for the settings.
    """
    if loaded.bars.tick != settings.tick_points:
        raise UserError(
            f"The bars have ticks of {loaded.bars.tick} points, tick_points is "
            f"{settings.tick_points}: generated markets have ticks of {loaded.bars.tick}."
        )
    try:
        warmup = arrays.warmup(settings.features, system.minutes, system.team)
    except ValueError as error:
        raise UserError(f"`features`: {error}") from error
    parts = split.split_bars(loaded.bars, settings, warmup)
    _require_analyses(settings, loaded.bars, parts, warmup)
    episode, rollout = lengths = arrays.window_length(loaded.bars, parts.train, settings)
    market = arrays.build_market(
        loaded.bars, settings, system.team, parts.train, episode, loaded.mandate
    )
    warnings = [
        *loaded.warnings,
        *_doubts(settings, loaded.bars, parts, episode, rollout),
        *_still(settings.features, np.asarray(market.features), parts),
    ]
    return assemble(system, settings, loaded, parts, market, lengths, tuple(warnings))


def fold_parts(bars: Bars, settings: Settings, warmup: int) -> tuple[list[Split], Settings]:
    """Return the folds of a walk-forward, and the settings with windows that fit each of them.

    Raises:
        UserError: too few sessions for so many folds, or windows too short for the settings.
    """
    parts = split.folds(bars, settings, warmup, settings.walk_forward)
    episode, rollout = min(arrays.window_length(bars, part.train, settings) for part in parts)
    return parts, settings.replace(episode_length=episode, rollout_length=rollout)


def _require_analyses(settings: Settings, bars: Bars, parts: Split, warmup: int) -> None:
    """Refuse before the training what its analyses would refuse after it."""
    if settings.walk_forward:
        fold_parts(bars, settings, warmup)
    if settings.null_copies and len(np.unique(bars.session[slice(*parts.test)])) < 2:
        raise UserError(
            "The null test compares Sharpe ratios of the test split, which has one session, "
            "expected at least 2; give a longer file."
        )


def assemble(
    system: System,
    settings: Settings,
    loaded: Loaded,
    parts: Split,
    market: Market,
    lengths: tuple[int, int],
    warnings: tuple[str, ...] = (),
) -> Setup:
    """Lay out the program's arguments around a market.

    Args:
        system: whose team.
        settings: as asked for.
        loaded: the bars.
        parts: their split.
        market: the bars on the device.
        lengths: of a window and of a rollout, bars, as they fit the bars.
        warnings: for the person.
    """
    episode, rollout = lengths
    # what fits the bars is held to the same rules as what was asked for
    fitted = settings.replace(episode_length=episode, rollout_length=rollout)
    first, steps = split.segments(loaded.bars, parts.validation, MAX_SEGMENTS)
    return Setup(
        system=system,
        settings=settings,
        loaded=loaded,
        split=parts,
        warmup=arrays.warmup(settings.features, system.minutes, system.team),
        episode_length=episode,
        market=market,
        params=units.env_params(settings, episode),
        config=static_config(system, fitted),
        hyper=hyper(settings, episode // rollout),
        segments=Segments(jnp.asarray(first), jnp.asarray(steps)),
        warnings=warnings,
    )


def _doubts(
    settings: Settings, bars: Bars, parts: Split, episode: int, rollout: int
) -> Iterator[str]:
    """Yield what a person should know before believing the run."""
    if episode != settings.episode_length:
        yield (
            f"The longest unbroken stretch of training bars is shorter than episode_length "
            f"{settings.episode_length}: windows have {episode} bars, updates every {rollout}."
        )
    first, end = parts.train
    runs = split.clean_runs(bars, parts.train)[first:end]
    starts = np.append(runs >= episode, np.zeros(episode + 1, dtype=bool)).astype(int)
    ends = np.roll(starts, episode + 1)
    covered = (np.cumsum(starts - ends)[: end - first] > 0).mean()
    if covered < COVERED:
        yield (
            f"Holes and rolls leave windows of {episode} bars only {covered:.0%} of the training "
            "bars; a smaller episode_length uses more of them."
        )
    notional = np.median(bars.close[first:end]) * settings.point_value_usd
    cap = settings.max_leverage * settings.start_equity_usd / notional
    if cap < settings.lots_small:
        yield (
            f"The leverage limit admits {cap:.2f} contracts at the training bars' median price, "
            f"less than lots_small {settings.lots_small}: hardly anything can be bought."
        )


def _still(names: Sequence[str], values: np.ndarray, parts: Split) -> Iterator[str]:
    """Yield the features that training cannot teach anything about."""
    first, end = parts.train
    for name, spread in zip(names, np.ptp(values[first:end], axis=0), strict=True):
        if spread == 0:
            yield (
                f"{name} is the same in all {end - first:,} training bars: nothing is learnt from "
                "it, and later it may move. Give more bars or shorter lengths, or leave it out."
            )


def static_config(system: System, settings: Settings) -> Config:
    """Return what shapes the program."""
    return Config(
        system=system,
        num_envs=settings.num_envs,
        rollout_length=settings.rollout_length,
        num_rollouts=settings.episode_length // settings.rollout_length,
        num_minibatches=settings.num_minibatches,
        num_epochs=settings.num_epochs,
        hidden_sizes=settings.hidden_sizes,
        layer_norm=settings.layer_norm,
        central=settings.critic == "central",
        precision=settings.precision,
        initial_neutral=settings.initial_neutral,
        huber=settings.value_loss == "huber",
        interval=pace.MAX_INTERVAL,
        micro_rows=MICRO_ROWS if _on_cpu() else sys.maxsize,
    )


def _on_cpu() -> bool:
    device = jax.config.values["jax_default_device"] or jax.devices()[0]
    return getattr(device, "platform", device) == "cpu"


def hyper(settings: Settings, updates_per_iteration: int) -> Hyper:
    """Return what the program traces."""
    own = {"num_updates", "validate_every"}
    numbers = {f.name: getattr(settings, f.name) for f in fields(Hyper) if f.name not in own}
    return Hyper(
        **{k: jnp.float32(v) for k, v in numbers.items()},
        num_updates=jnp.float32(settings.num_episodes * updates_per_iteration),
        validate_every=jnp.int32(settings.validate_every),
    )
