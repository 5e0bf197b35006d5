"""Where bars come from: a file or a generated market, remembered so that a run can be repeated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market import loader, synthetic
from gm_jax.market.bars import Bars
from gm_jax.market.synthetic import World
from gm_jax.settings import Settings


@dataclass(frozen=True)
class Source:
    """Names bars: `data` a CSV file, otherwise `market` a generated world."""

    data: str | None = None
    market: str | None = None
    seed: int = 0  # of the generated world
    date_format: str | None = None
    tz: str | None = None
    repair: bool = False
    around_the_clock: bool = False
    strategic: str | None = None  # run directory whose position bounds the team's

    @property
    def label(self) -> str:
        """What a person calls it."""
        if self.data:
            return self.data
        return f"generated market {self.market} (seed {self.seed})"


@dataclass(frozen=True)
class Loaded:
    """Bars and what is known of them."""

    bars: Bars
    label: str
    digest: str  # SHA-256 of every column of the bars
    world: World | None  # what is known of a generated market
    report: dict[str, Any]  # the data check, or the world's parameters
    warnings: tuple[str, ...]
    mandate: np.ndarray | None = None  # [T, 2] f64, see `Market.mandate`
    strategic: str | None = None  # run directory that the mandate is from

    @property
    def mandate_digest(self) -> str | None:
        """SHA-256 of the mandate, None without one."""
        return None if self.mandate is None else hashlib.sha256(self.mandate.tobytes()).hexdigest()


def load(source: Source, settings: Settings, minutes: int) -> Loaded:
    """Read or generate the bars.

    Raises:
        UserError: the file or the world's parameters cannot be used.
    """
    if source.data is None:
        world = synthetic.generate(
            source.market or "planted",
            bars=settings.market_bars,
            minutes=minutes,
            seed=source.seed,
            parameters=settings.market_parameters,
        )
        return Loaded(world.bars, source.label, digest(world.bars), world, world.parameters, ())
    if not Path(source.data).is_file():
        raise UserError(
            f"No file {source.data}. Give --data a CSV with Date, Open, High, Low, Close, Volume, "
            "or leave --data out to train on a generated market."
        )
    return read(source.data, source, settings, minutes)


def read(
    table: str | Path | pd.DataFrame, source: Source, settings: Settings, minutes: int
) -> Loaded:
    """Read the bars of a file or of a frame.

    Args:
        table: a CSV file, or a frame with the same columns.
        source: how its stamps are meant; its label.
        settings: of the run.
        minutes: length of a bar.

    Raises:
        UserError: they are not what they should be, or too few.
    """
    if settings.market_parameters:
        raise UserError(
            f"market.{next(iter(settings.market_parameters))} is of a generated market; "
            "it says nothing about --data."
        )
    bars, report = loader.load(
        table,
        minutes,
        date_format=source.date_format,
        tz=source.tz,
        repair=source.repair,
        around_the_clock=source.around_the_clock,
        tick=settings.tick_points,
    )
    loader.require_size(bars)
    return Loaded(bars, source.label, digest(bars), None, report.to_json(), tuple(report.warnings))


def digest(bars: Bars) -> str:
    """Return the SHA-256 of every column of the bars."""
    columns = [getattr(bars, f.name) for f in fields(Bars) if f.name not in ("minutes", "tick")]
    joined = hashlib.sha256()
    for column in columns:
        joined.update(np.ascontiguousarray(column).tobytes())
    return joined.hexdigest()
