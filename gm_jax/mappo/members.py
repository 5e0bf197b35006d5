"""Members: many teams trained side by side by one program, each on a market of its own.

Each may have a market, costs, limits, learning rates of its own. Letter: M members. What all share
(bars of the same history, most numbers, the counters) has no member axis, so that it is stored
once, and validation stays a branch that is mostly not taken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import Array, EnvParams, Market
from gm_jax.mappo import learner
from gm_jax.mappo.types import Config, Hyper, Metrics, Networks, TrainState
from gm_jax.mappo.validation import Segments


Tree = TypeVar("Tree")
Arguments = tuple[Market, EnvParams, Hyper, Segments]  # of the program, beside the state

# where a state has its member axis
_AXES: dict[str, Any] = {f.name: 0 for f in fields(TrainState)}
STATE_AXES = TrainState(**_AXES | {"update": None, "iteration": None})


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Return the states with a member axis; all must have come equally far."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return stacked.replace(update=states[0].update, iteration=states[0].iteration)


def member(state: TrainState, number: int) -> TrainState:
    """Return the state of one member, as if it had been trained alone."""
    apart = state.replace(update=None, iteration=None)
    mine: TrainState = jax.tree.map(lambda x: x[number], apart)
    return mine.replace(update=state.update, iteration=state.iteration)


def shared(members: Sequence[Tree]) -> list[Tree]:
    """Return the trees with one object for each leaf that is equal in all of them."""
    structure: Any = jax.tree.structure(members[0])
    columns = [
        c[:1] * len(c) if all(np.array_equal(x, c[0]) for x in c) else c
        for c in zip(*map(jax.tree.leaves, members), strict=True)
    ]
    return [structure.unflatten(leaves) for leaves in zip(*columns, strict=True)]


def axes_of(members: Sequence[Tree]) -> Any:
    """Return where one tree for all members has a member axis: not where all have one object."""
    structure: Any = jax.tree.structure(members[0])
    columns = zip(*map(jax.tree.leaves, members), strict=True)
    return structure.unflatten(None if all(x is c[0] for x in c) else 0 for c in columns)


def stack(members: Sequence[Tree], axes: Any) -> Tree:
    """Return one tree for all members, leaves [M, …] where `axes` says 0."""
    structure: Any = jax.tree.structure(members[0])  # None is an axis here, no empty tree
    columns = zip(*map(jax.tree.leaves, members), strict=True)
    every = zip(columns, structure.flatten_up_to(axes), strict=True)
    return structure.unflatten(c[0] if axis is None else jnp.stack(c) for c, axis in every)


def chosen(state: TrainState) -> Networks:
    """Return what validation chose of each member, leaves [M, …], see `learner.chosen`."""
    return jax.vmap(learner.chosen, in_axes=(STATE_AXES,))(state)


@partial(jax.jit, static_argnames=("config", "axes"), donate_argnames="state")
def train(
    state: TrainState,
    iterations: Array,
    market: Market,
    params: EnvParams,
    hyper: Hyper,
    segments: Segments,
    config: Config,
    axes: tuple[int | None, ...],
) -> tuple[TrainState, Metrics]:
    """Run `iterations` iterations of every member, see `learner.train`.

    Args:
        state: leaves [M, …] but for the counters; donated.
        iterations: [] i32, at most config.interval.
        market: bars on the device.
        params: of the environment.
        hyper: of the learner; all members validate at the same time and plan as many updates.
        segments: of the validation splits.
        config: static.
        axes: of each leaf of (market, params, hyper, segments): 0 where it is [M, …], else None;
            static.
    """
    arguments = (market, params, hyper, segments)
    whole = replace(config, micro_rows=sys.maxsize)  # side by side they would fill a cache anyhow

    def one(state: TrainState, arguments: Arguments) -> tuple[TrainState, Metrics]:
        return learner.train(state, iterations, *arguments, config=whole)

    structure: Any = jax.tree.structure(arguments)
    each = jax.vmap(one, in_axes=(STATE_AXES, structure.unflatten(axes)), out_axes=(STATE_AXES, 0))
    return each(state, arguments)
