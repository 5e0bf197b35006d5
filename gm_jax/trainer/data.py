"""Bars for a trainer: read once, kept on the device by content, in few shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from gm_jax.env import core
from gm_jax.env.types import Array, EnvParams, Market
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.scaling import rescaled
from gm_jax.mappo.types import Config, Networks, TrainState
from gm_jax.mappo.validation import Segments
from gm_jax.market.worlds import MARKETS
from gm_jax.run.mandate import load_all
from gm_jax.run.setup import MAX_SEGMENTS, Setup, prepare
from gm_jax.run.source import Loaded, Source, read
from gm_jax.settings import Settings
from gm_jax.systems import System


KEPT = 4  # data sets whose arrays stay on the device
LEAST_CLASS = 4_096  # bars
FRAME = "DataFrame"  # what a person calls a frame
LONG = ("bars", "features", "impact", "atr", "signals", "mandate", "starts")  # of Market, [T, …]

Data = pd.DataFrame | str | Path  # a frame, a CSV file, or the name of a generated market
Item = TypeVar("Item")


@dataclass(frozen=True)
class Dataset:
    """Bars that a trainer was given."""

    source: Source
    loaded: Loaded
    frame: pd.DataFrame | None = None  # as it was given; files and markets can be read again


class Shelf:
    """The data that a trainer was given last, and what was made of them for the device."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._datasets: dict[str, Dataset] = {}
        self._how: dict[str, dict[str, Any]] = {}  # what was said of data, by their content
        self._setups: dict[str, Setup] = {}

    def dataset(self, data: Data, settings: Settings, how: Mapping[str, Any] | None) -> Dataset:
        """Return the bars of data; they are read where their content is not known.

        Args:
            data: see `Data`.
            settings: of the trainer.
            how: fields of `Source` that say how stamps and faults are to be taken; None takes what
                was said of the same data before.

        Raises:
            UserError: they cannot be used.
        """
        made_by = (settings.seed, settings.market_bars, settings.market_parameters)
        known = content(data)
        said = self._how.get(known, {}) if how is None else dict(how)
        key = repr((known, settings.tick_points, said, made_by))
        found = _remembered(self._datasets, key, lambda: self._load(data, settings, said))
        self._how[known] = said
        return found

    def _load(self, data: Data, settings: Settings, how: Mapping[str, Any]) -> Dataset:
        minutes = self._system.minutes
        if isinstance(data, pd.DataFrame):
            source, frame = Source(data=FRAME, **how), data.copy()
            return Dataset(source, read(frame, source, settings, minutes), frame)
        if _is_market(data):
            source = Source(market=str(data), seed=settings.seed)
        else:
            source = Source(data=str(data), **how)
        return Dataset(source, load_all(source, settings, minutes))

    def setup(self, loaded: Loaded, settings: Settings) -> Setup:
        """Return bars and settings as arguments of the program, in a shape that others share.

        Raises:
            UserError: the bars do not suffice for the settings.
        """
        key = repr((loaded.digest, loaded.mandate_digest, settings.to_json()))
        return _remembered(
            self._setups, key, lambda: in_class(prepare(self._system, settings, loaded))
        )

    def keep(self, setup: Setup) -> Setup:
        """Return a setup as `setup` will from now on."""
        key = repr((setup.loaded.digest, setup.loaded.mandate_digest, setup.settings.to_json()))
        return _remembered(self._setups, key, lambda: in_class(setup))


def _remembered(shelf: dict[str, Item], key: str, make: Callable[[], Item]) -> Item:
    """Return an item of a shelf, made where it is not there; the one longest unused goes."""
    shelf[key] = item = shelf.pop(key) if key in shelf else make()
    while len(shelf) > KEPT:
        del shelf[next(iter(shelf))]
    return item


def content(data: Data) -> str:
    """Return what tells data apart: changed values or files are other data.

    Raises:
        UserError: it is none of the kinds of `Data`.
    """
    if isinstance(data, pd.DataFrame):
        rows = pd.util.hash_pandas_object(data, index=True, categorize=False).to_numpy()
        return f"{list(data.dtypes.items())} {hashlib.sha256(rows.tobytes()).hexdigest()}"
    if not isinstance(data, str | Path):
        raise UserError(
            f"data is of {type(data).__name__}, expected a DataFrame with Date, Open, High, Low, "
            f"Close, Volume, the path of such a CSV file, or a market: {', '.join(MARKETS)}."
        )
    path = Path(data)
    if not path.is_file():
        return str(data)
    with path.open("rb") as file:
        return f"{path.resolve()} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _is_market(data: str | Path) -> bool:
    return str(data) in MARKETS and not Path(data).exists()


def size_class(bars: int) -> int:
    """Return to how many bars so many are padded: a power of two."""
    return max(LEAST_CLASS, 1 << (bars - 1).bit_length())


def in_class(setup: Setup, length: int | None = None) -> Setup:
    """Return a setup whose arrays have the length of their class, so that others share a program.

    What is added is never played: the last bar again, no start of a window, segments of no steps.

    Args:
        setup: of the training.
        length: bars; None takes the class of the setup's.
    """
    count = len(setup.market.bars)
    more = (length or size_class(count)) - count
    few = MAX_SEGMENTS - len(setup.segments.first)

    def padded(x: Array, rows: int, mode: Any = "edge") -> Array:
        return jnp.asarray(np.pad(np.asarray(x), [(0, rows), *[(0, 0)] * (x.ndim - 1)], mode=mode))

    market = setup.market.replace(**{x: padded(getattr(setup.market, x), more) for x in LONG})
    first, steps = setup.segments.first, setup.segments.steps
    segments = Segments(padded(first, few), padded(steps, few, "constant"))
    return replace(setup, market=market, segments=segments)


def begun(setup: Setup, nets: Networks | None) -> TrainState:
    """Return a fresh state, with networks that learnt before if there are any.

    Args:
        setup: of the training.
        nets: of features under the setup's scaler.
    """
    key = jax.random.key(setup.settings.seed)
    state: TrainState = learner.init_state(key, setup.market, setup.params, setup.config)
    return state if nets is None else state.replace(networks=nets, best=learner.unscored(nets))


def moved(state: TrainState, before: Setup, after: Setup) -> TrainState:
    """Return the state, ready to go on with other bars or in windows of another length.

    Environments begin new windows. With other bars the networks are moved to their scaler, and
    what was best is forgotten, since its score is of the bars before.
    """
    names = ("digest", "mandate_digest")
    same = all(getattr(before.loaded, x) == getattr(after.loaded, x) for x in names)
    if same and before.episode_length == after.episode_length:
        return state
    if not same:
        nets = rescaled(state.networks, before.scaler, after.scaler)
        state = state.replace(networks=nets, best=learner.unscored(nets))
    return _restarted(state, after.market, after.params, after.config)


@partial(jax.jit, static_argnames="config")
def _restarted(state: TrainState, market: Market, params: EnvParams, config: Config) -> TrainState:
    """Return the state with every environment at the start of a new window."""
    key, env_key = jax.random.split(state.key)
    env = core.reset_many(env_key, config.num_envs, market, params, config.system.team)
    return state.replace(key=key, env=env)
