"""A mandate: the position of a strategic run bounds what a tactical team may hold.

The strategic team plays the same history in bars of its own length on an account of its own. Its
decision, taken at the close of such a bar, is the sign and the share of its maximum that the
tactical limit has from then on: not before that bar has closed, and until the next one has.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gm_jax.config import change
from gm_jax.env import arrays
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.market import resampling
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE
from gm_jax.market.data_report import iso
from gm_jax.market.split import Split
from gm_jax.report.backtest import Ledger
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import team_ledger
from gm_jax.run.setup import Setup, assemble
from gm_jax.run.source import Loaded, Source, load
from gm_jax.settings import Settings
from gm_jax.systems import SYSTEMS


def load_all(source: Source, settings: Settings, minutes: int) -> Loaded:
    """Read or generate bars, with the mandate of the strategic run that the source names.

    Raises:
        UserError: bars or run cannot be used.
    """
    loaded = load(source, settings, minutes)
    if source.strategic is None:
        return loaded
    bounds, warnings = mandate(Path(source.strategic), loaded.bars)
    return replace(
        loaded,
        mandate=bounds,
        strategic=source.strategic,
        warnings=(*loaded.warnings, *warnings),
    )


def mandate(path: Path, bars: Bars) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the bounds that a strategic run sets, and what a person should know of them.

    Args:
        path: the strategic run's directory.
        bars: T bars, shorter than the run's and dividing them.

    Returns:
        Least and most position admitted at each bar's close, [T, 2] f64, shares of the maximum;
        nothing is admitted before the first decision.

    Raises:
        UserError: no such run, or one whose bars cannot be made of these.
    """
    directory = RunDirectory.open(path)
    config = directory.config()
    system = SYSTEMS.get(config["system"])
    if system is None or system.minutes <= bars.minutes:
        raise UserError(
            f"{path} is a run of the system {config['system']!r}; --strategic wants one with bars "
            f"longer than {bars.minutes} minutes."
        )
    longer, inexact = resampling.resample(bars, system.minutes)
    setup = _on(directory, longer)
    checkpoints = Checkpoints(directory.checkpoints)
    networks = learner.chosen(checkpoints.restore(setup))
    checkpoints.close()
    ledger = team_ledger(setup, networks, setup.split.test)
    share = ledger.target / setup.settings.max_contracts
    bounds = bounds_of(share, ledger.time + system.minutes * MINUTE, bars)
    made = (f"the strategic team's {system.minutes}-minute bars: {x}" for x in inexact.warnings)
    return bounds, (*made, *_seen(config, bars), *_over(ledger))


def bounds_of(share: np.ndarray, known: np.ndarray, bars: Bars) -> np.ndarray:
    """Return the bounds that hold at each bar's close, [T, 2] f64.

    Args:
        share: [n] f64, decided position over its maximum, −1 to 1.
        known: [n] i64, ns UTC, when each decision is taken: the close of its bar.
        bars: T bars.
    """
    last = np.searchsorted(known, bars.time + bars.minutes * MINUTE, side="right") - 1
    now = np.where(last >= 0, share[np.maximum(last, 0)], 0.0)
    return np.stack([np.minimum(now, 0), np.maximum(now, 0)], axis=1)


def _on(directory: RunDirectory, bars: Bars) -> Setup:
    """Return the setup of a run on other bars, with its own scaler; every usable bar is tested."""
    config = directory.config()
    system = SYSTEMS[config["system"]]
    settings = change(system.settings, config["settings"], str(directory.path))
    if settings.tick_points != bars.tick:
        raise UserError(
            f"The strategic run {directory.path} has tick_points {settings.tick_points}, the bars "
            f"have ticks of {bars.tick} points."
        )
    warmup = arrays.warmup(settings.features, system.minutes, system.team)
    if len(bars) <= warmup + 1:
        raise UserError(
            f"The bars make {len(bars)} of {system.minutes} minutes, the strategic run "
            f"{directory.path} needs more than the {warmup} of its warm-up; give a longer file."
        )
    usable = (warmup, len(bars))
    market = arrays.build_market(bars, settings, system.team, usable, episode_length=1)
    scaler = {name: np.float32(config["scaler"][name]) for name in ("mean", "scale")}
    return assemble(
        system,
        settings,
        Loaded(bars, str(directory.path), config["data_sha256"], None, {}, ()),
        Split(usable, usable, usable),
        market.replace(**scaler),
        (settings.episode_length, settings.rollout_length),
    )


def _over(ledger: Ledger) -> tuple[str, ...]:
    """Warn where the strategic account was closed early."""
    closed = ledger.closed_by()
    if closed is None:
        return ()
    reason, row = closed
    return (
        f"The strategic account was closed by {reason} at {iso(ledger.time[row])}: from then on "
        "its mandate admits nothing.",
    )


def seen(path: str | None, bars: Bars, span: tuple[int, int]) -> bool:
    """Return whether a span's times are among those that the strategic team was trained on.

    Args:
        path: of the strategic run; None where there is none.
        bars: T bars.
        span: half-open range of them.
    """
    return path is not None and _overlap(RunDirectory.open(Path(path)).config(), bars[slice(*span)])


def _overlap(config: dict[str, Any], bars: Bars) -> bool:
    train = config["split"]["train"]
    ends = (np.datetime64(train[end].removesuffix("Z"), "ns") for end in ("first", "last"))
    first, last = (int(end.astype(np.int64)) for end in ends)
    return bool(bars.time[-1] >= first and bars.time[0] <= last)


def _seen(config: dict[str, Any], bars: Bars) -> tuple[str, ...]:
    """Warn where the strategic team was trained on times among these bars."""
    train = config["split"]["train"]
    if not _overlap(config, bars):
        return ()
    return (
        f"The strategic team was trained on {train['first']} to {train['last']}: if that was this "
        "market, what its mandate earns until then is in-sample.",
    )
