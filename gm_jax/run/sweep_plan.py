"""What a sweep trains: the settings of a grid, each with several seeds, in few programs.

Whatever a program only reads is traced: learning rates, costs, limits, reward weights. Settings
that differ in nothing else are trained by one program; which these are is seen from what
`setup.prepare` makes of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gm_jax.config import change
from gm_jax.env import rewards
from gm_jax.errors import UserError
from gm_jax.mappo import members
from gm_jax.run.mandate import load_all
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Loaded, Source
from gm_jax.run.trials import settings_digest
from gm_jax.settings import ANALYSES, Settings
from gm_jax.systems import System


MOST_MEMBERS = 10_000
TARGETS = ("target_reward", "target_sharpe", "target_drawdown")
# why a setting has no place in a grid
NOT_SWEPT = {
    "seed": "each setting is trained with --seeds K seeds, the first of which is --seed",
    "validate_every": "the score is the best of all validations: who is validated more often wins",
    "tick_points": "it is a fact about the bars",
    **dict.fromkeys(TARGETS, "a report is held to it, nothing is learnt from it"),
    **dict.fromkeys(
        ANALYSES,
        "an analysis is of one run: `gm-jax train SYSTEM --resume SWEEP/best` with --null or, of "
        "the same settings, --walk-forward",
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a sweep was asked for."""

    system: System
    base: Settings  # what the grid changes; its seed is the first
    grid: Mapping[str, Sequence[Any]]  # values by key, text or of the setting's type
    seeds: int  # of each setting
    source: Source


@dataclass(frozen=True)
class Group:
    """Settings that one program trains."""

    numbers: tuple[int, ...]  # of the settings, in the order of the grid
    setups: tuple[Setup, ...]  # with the first seed; what is equal in all is one object


def parse_grid(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Split `key=value,value,…` of the command line; a list in brackets is one value.

    Raises:
        UserError: a key without values, an empty value, an open bracket, a key given twice.
    """
    grid: dict[str, list[str]] = {}
    for text in arguments:
        key, _, rest = (part.strip() for part in text.partition("="))
        values = [value.strip() for value in re.split(r",(?![^\[]*\])", rest)]
        closed = all(value.count("[") == value.count("]") for value in values)
        if not (key and all(values) and closed):
            raise UserError(
                f"--grid {text}: expected key=value,value,…, e.g. lr_actor=1e-4,3e-4 or "
                "hidden_sizes=[64,64],[128,128]."
            )
        if key in grid:
            raise UserError(f"--grid {key} is given twice; give all its values at once.")
        grid[key] = values
    return grid


def combine(plan: Plan) -> list[Settings]:
    """Return every setting of the grid, the last key's values changing fastest.

    Raises:
        UserError: a key or a value that cannot be used, twice the same setting, nothing to compare.
    """
    _refuse(plan)
    count = math.prod(map(len, plan.grid.values()))
    if not 2 <= count * plan.seeds <= MOST_MEMBERS:
        raise UserError(
            f"The sweep has {count * plan.seeds:,} members ({count:,} settings × {plan.seeds:,} "
            f"seeds), expected 2 to {MOST_MEMBERS:,}; give --grid key=value,value or --seeds K."
        )
    found: dict[str, tuple[Settings, str]] = {}
    for values in itertools.product(*plan.grid.values()):
        changes = dict(zip(plan.grid, values, strict=True))
        settings = change(plan.base, changes, "--grid")
        same = found.setdefault(settings_digest(settings.to_json()), (settings, label(changes)))
        if same[0] is not settings:
            lists = any(isinstance(getattr(settings, key, None), tuple) for key in changes)
            hint = ", lists in brackets: [64,64]" if lists else ""
            raise UserError(
                f"{label(changes)} is the same as {same[1]}; give each value once{hint}."
            )
    return [settings for settings, _ in found.values()]


def _refuse(plan: Plan) -> None:
    """Refuse what makes no sense in a grid, or beside one."""
    if plan.seeds < 1:
        raise UserError(f"--seeds is {plan.seeds}, expected a whole number above 0.")
    for key, why in _unswept(plan):
        if key in plan.grid:
            raise UserError(f"--grid {key}: {why}.")
    for key in ANALYSES:
        if getattr(plan.base, key):
            raise UserError(f"`{key}` in a sweep: {NOT_SWEPT[key]}.")


def _unswept(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the settings that this sweep cannot try, and why not."""
    yield from NOT_SWEPT.items()
    if plan.source.data:
        yield "market_bars", "it is of a generated market and says nothing about --data"
    for term in rewards.TERMS.keys() - plan.system.team.TERMS.keys():
        yield f"reward_{term}", f"no agent of the {plan.system.name} team receives this term"


def value_of(settings: Settings, key: str) -> Any:
    """Return a setting by its key on the command line."""
    parameter = key.removeprefix("market.")
    return getattr(settings, key) if parameter == key else settings.market_parameters[parameter]


def label(changes: Mapping[str, Any]) -> str:
    """Return what a person calls a setting."""
    return " ".join(f"{key}={_text(value)}" for key, value in changes.items()) or "as given"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def groups(plan: Plan) -> list[Group]:
    """Prepare every setting, and gather those that one program can train.

    Members of a program share bars, windows and validation, the networks' shapes, and the number of
    iterations: those that train longer are a program of their own.

    Raises:
        UserError: see `combine`, `load_all` and `prepare`.
    """
    bars: dict[str, Loaded] = {}
    kinds: dict[Any, list[tuple[int, Setup]]] = {}
    for number, settings in enumerate(combine(plan)):
        world = repr((settings.market_bars, sorted(settings.market_parameters.items())))
        if world not in bars:
            bars[world] = load_all(plan.source, settings, plan.system.minutes)
        setup = prepare(plan.system, settings, bars[world])
        alike = kinds.setdefault(_kind(setup), [])
        if alike:  # equal arrays are kept once
            first = alike[0][1]
            setup = dataclasses.replace(setup, market=first.market, segments=first.segments)
        alike.append((number, setup))
    return [_group(alike) for alike in kinds.values()]


def _kind(setup: Setup) -> Any:
    """Return what settings have in common that one program trains."""
    arrays = hashlib.sha256()
    for leaf in jax.tree.leaves((setup.market, setup.segments)):
        arrays.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    settings = setup.settings
    length = (setup.episode_length, settings.num_episodes, settings.validate_every)
    return setup.config, length, setup.split, setup.loaded.digest, arrays.digest()


def _group(alike: Sequence[tuple[int, Setup]]) -> Group:
    numbers, setups = zip(*alike, strict=True)
    traced = members.shared([(setup.params, setup.hyper) for setup in setups])
    own = (
        dataclasses.replace(setup, params=params, hyper=hyper)
        for setup, (params, hyper) in zip(setups, traced, strict=True)
    )
    return Group(numbers, tuple(own))
