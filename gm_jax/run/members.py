"""Training many members beside a run: chunks that fit the memory, saved as they go."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import Array
from gm_jax.errors import NotFiniteError
from gm_jax.mappo import learner, members
from gm_jax.mappo.types import Networks, TrainState
from gm_jax.run import pace
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.progress import clock, say
from gm_jax.run.setup import Setup
from gm_jax.run.signals import first_is_a_wish


MOST = 64  # members of one program
MEMORY_SHARE = 0.7  # of what is free that a program may take


class StoppedEarlyError(Exception):
    """A signal ended the training of members; what was done is saved."""


@dataclass(frozen=True)
class Program:
    """A compiled program that trains some members."""

    size: int  # members
    axes: Any  # of the market, see `members.axes_of`
    run: Any  # (state, iterations, market, params, hyper, segments) -> (state, metrics)


@dataclass(frozen=True)
class Trained:
    """Some members, trained."""

    numbers: tuple[int, ...]
    setups: tuple[Setup, ...]
    networks: Networks  # leaves [M, …], those that validation chose


def train_members(
    directory: RunDirectory, name: str, numbers: Sequence[int], make: Callable[[int], Setup]
) -> Iterator[Trained]:
    """Train a team for each number, in as few programs as fit the memory.

    Args:
        directory: of the run; the newest state lies in `<name>/` until a chunk is done.
        name: what the members are, for a person and for the folder.
        numbers: of the members; the seed of each is drawn from the run's.
        make: returns the setup of a member; all have the same shapes and settings.

    Raises:
        StoppedEarlyError: a signal came; the state is saved.
        NotFiniteError: a reward, a loss or a network became NaN.
    """
    if not numbers:
        return
    first = make(numbers[0])
    program = fitting_program(first, make(numbers[-1]), len(numbers))
    size = program.size
    for begin in range(0, len(numbers), size):
        chunk = tuple(numbers[begin : begin + size])
        setups = tuple(map(make, chunk))
        # the last chunk is filled up: one shape, one compilation
        filled = [*setups, *setups[-1:] * (size - len(chunk))]
        label = f"{name}: {begin + 1}-{begin + len(chunk)} of {len(numbers)}"
        state = _train(directory.path / name, program, chunk, filled, label)
        networks = jax.tree.map(partial(_first, len(chunk)), members.chosen(state))
        yield Trained(chunk, setups, networks)
        shutil.rmtree(directory.path / name, ignore_errors=True)


def _first(count: int, leaf: Array) -> Array:
    return leaf[:count]


def fitting_program(one: Setup, other: Setup, count: int) -> Program:
    """Return the program of as many members as train within the memory that is free.

    Args:
        one: setup of a member.
        other: setup of another, to tell what they share.
        count: members there are.
    """
    size = min(count, MOST)
    axes = members.axes_of([one.market, other.market] if count > 1 else [one.market])
    while True:
        compiled = _compile(one, axes, size)
        analysis: Any = compiled.memory_analysis()
        needed = int(analysis.argument_size_in_bytes + analysis.temp_size_in_bytes)
        if size == 1 or needed < MEMORY_SHARE * _free():
            return Program(size, axes, compiled)
        size = math.ceil(size / 2)
        say(f"memory: {needed / 2**30:.1f} GiB needed, {size} members at a time instead")


def _compile(setup: Setup, axes: Any, size: int) -> Any:
    """Compile the program of so many members."""

    def shape(x: Any, axis: int | None) -> Any:
        return jax.ShapeDtypeStruct(x.shape if axis is None else (size, *x.shape), x.dtype)

    init = partial(learner.init_state, config=setup.config)
    state = jax.eval_shape(init, jax.random.key(0), setup.market, setup.params)
    wide = jax.tree.map(lambda x: shape(x, 0), state)
    structure: Any = jax.tree.structure(setup.market)  # None is an axis here, no empty tree
    leaves = map(shape, jax.tree.leaves(setup.market), structure.flatten_up_to(axes))
    return members.train.lower(
        wide.replace(update=state.update, iteration=state.iteration),
        jnp.int32(1),
        structure.unflatten(leaves),
        setup.params,
        setup.hyper,
        jax.tree.map(lambda x: shape(x, 0), setup.segments),
        config=setup.config,
        market_axes=axes,
    ).compile()


def _free() -> int:
    """Return the device's free memory, on a CPU the machine's, bytes."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _train(
    folder: Path, program: Program, chunk: Sequence[int], setups: Sequence[Setup], label: str
) -> TrainState:
    """Train one chunk to the end, from where an earlier try left it."""
    setup = setups[0]
    total = setup.settings.num_episodes
    checkpoints = Checkpoints(folder / f"{chunk[0]}x{program.size}", members=program.size)
    market = members.stack([one.market for one in setups], program.axes)
    segments = jax.tree.map(lambda *x: jnp.stack(x), *(one.segments for one in setups))
    state = checkpoints.restore(setup) if checkpoints.any() else _start(chunk, setups)
    done, count, began = int(state.iteration), 1, time.monotonic()
    first, saved = done, began
    with first_is_a_wish() as wished:
        while done < total:
            tick = time.monotonic()
            state, metrics = program.run(
                state, jnp.int32(count), market, setup.params, setup.hyper, segments
            )
            _require_finite(jax.device_get(metrics), count, label)
            done, now = done + count, time.monotonic()
            left = (now - began) / (done - first) * (total - done)
            say(f"{label}  iteration {done}/{total}  left {clock(left)}")
            if wished() or (done < total and now - saved > pace.SAVE_SECONDS):
                checkpoints.save(setup, state)
                saved = now
            if wished() and done < total:
                checkpoints.close()
                raise StoppedEarlyError
            count = pace.next_count(count, now - tick, total - done)
    checkpoints.close()
    return state


def _start(chunk: Sequence[int], setups: Sequence[Setup]) -> TrainState:
    """Return fresh states; one after another, see `networks.init`."""
    run_key = jax.random.key(setups[0].settings.seed)
    states = [
        learner.init_state(
            jax.random.fold_in(run_key, 1 + number), one.market, one.params, one.config
        )
        for number, one in zip(
            [*chunk, *[chunk[-1]] * (len(setups) - len(chunk))], setups, strict=True
        )
    ]
    return members.stack_states(states)


def _require_finite(metrics: Any, count: int, label: str) -> None:
    for name in ("reward", "actor_norm", "critic_norm"):
        if not np.isfinite(metrics[name][:, :count]).all():
            raise NotFiniteError(
                f"{label}: {name} is not finite; try a smaller lr_actor or lr_critic. What the run "
                "itself learnt is kept."
            )
