"""Training many members beside a run: chunks that fit the memory, saved as they go."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import Array
from gm_jax.errors import NotFiniteError, UserError
from gm_jax.mappo import learner, members
from gm_jax.mappo.types import Networks, TrainState
from gm_jax.run import pace
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.progress import clock, say
from gm_jax.run.setup import Setup
from gm_jax.run.signals import first_is_a_wish


_MEMBERS = 2**31 - 1  # far from the numbers of splits
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

    Their states lie in `<name>/` until `forget`: who is interrupted trains nothing twice.

    Args:
        directory: of the run.
        name: what the members are, for a person and for the folder.
        numbers: of the members; the seed of each is drawn from the run's.
        make: returns the setup of a member; all have the same shapes and settings.

    Raises:
        StoppedEarlyError: a signal came; the state is saved.
        NotFiniteError: a reward, a loss or a network became NaN.
    """
    if not numbers:
        return
    program = fitting_program(make(numbers[0]), make(numbers[-1]), len(numbers))
    size = program.size
    for begin in range(0, len(numbers), size):
        chunk = tuple(numbers[begin : begin + size])
        setups = tuple(map(make, chunk))
        # the last chunk is filled up: one shape, one compilation
        filler = size - len(chunk)
        everyone = (*chunk, *chunk[-1:] * filler), (*setups, *setups[-1:] * filler)
        label = f"{name}: {begin + 1}-{begin + len(chunk)} of {len(numbers)}"
        state = _train(directory.path / name, program, *everyone, label)
        yield Trained(chunk, setups, jax.tree.map(partial(_first, len(chunk)), state))


def _first(count: int, leaf: Array) -> Array:
    return leaf[:count]


def forget(directory: RunDirectory, name: str) -> None:
    """Remove the states of members whose results are written."""
    shutil.rmtree(directory.path / name, ignore_errors=True)


def fitting_program(one: Setup, other: Setup, count: int) -> Program:
    """Return the program of as many members as train within the memory that is free.

    Chunks are equal, so that the last is filled up by few.

    Args:
        one: setup of a member.
        other: setup of another, to tell what they share.
        count: members there are.
    """
    axes = members.axes_of([one.market, other.market] if count > 1 else [one.market])
    chunks = math.ceil(count / MOST)
    while True:
        size = math.ceil(count / chunks)
        compiled = _compile(one, axes, size)
        analysis: Any = compiled.memory_analysis()
        # for a moment, what is stacked exists twice
        needed = int(2 * analysis.argument_size_in_bytes + analysis.temp_size_in_bytes)
        if size == 1 or needed < MEMORY_SHARE * _free():
            return Program(size, axes, compiled)
        chunks *= 2
        say(f"memory: {size} members need {needed / 2**30:.1f} GiB, fewer are trained at a time")


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
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # what caches hold is free too
        lines = (line.split() for line in meminfo.read_text().splitlines())
        return next(int(kib) * 1024 for name, kib, *_ in lines if name == "MemAvailable:")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _train(
    folder: Path, program: Program, numbers: Sequence[int], setups: Sequence[Setup], label: str
) -> Networks:
    """Train one chunk to the end, from where an earlier try left it; return what was chosen."""
    setup = setups[0]
    total = setup.settings.num_episodes
    market = members.stack([one.market for one in setups], program.axes)
    segments = jax.tree.map(lambda *x: jnp.stack(x), *(one.segments for one in setups))
    checkpoints = Checkpoints(folder / _identity(numbers, setups), members=program.size)
    with closing(checkpoints), first_is_a_wish() as wished:
        state = _begin(checkpoints, numbers, setups)
        first = done = int(state.iteration)
        count, saved = 1, (began := time.monotonic())
        while done < total:
            tick = time.monotonic()
            state, metrics = program.run(
                state, jnp.int32(count), market, setup.params, setup.hyper, segments
            )
            _require_finite(jax.device_get(metrics), count, label)
            done, now = done + count, time.monotonic()
            left = (now - began) / (done - first) * (total - done)
            say(f"{label}  iteration {done}/{total}  left {clock(left)}")
            if wished() or done == total or now - saved > pace.SAVE_SECONDS:
                checkpoints.save(setup, state)
                saved = now
            if wished():
                raise StoppedEarlyError
            count = pace.next_count(count, now - tick, total - done)
    return members.chosen(state)


def _identity(numbers: Sequence[int], setups: Sequence[Setup]) -> str:
    """Return a name for a chunk that no other has, whatever else was trained here before."""
    what = [
        (number, one.loaded.digest, one.loaded.mandate_digest, one.split, one.settings.num_episodes)
        for number, one in zip(numbers, setups, strict=True)
    ]
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _begin(checkpoints: Checkpoints, numbers: Sequence[int], setups: Sequence[Setup]) -> TrainState:
    """Return the states that an earlier try left, or fresh ones."""
    if checkpoints.any():
        try:
            state = checkpoints.restore(setups[0])
            checkpoints.cut(int(state.iteration))  # newer ones are damaged
            return state
        except UserError:
            say(f"warning: nothing in {checkpoints.directory} can be used, it is trained anew")
            shutil.rmtree(checkpoints.directory)
    # not the keys that the run itself drew from its seed
    root = jax.random.fold_in(jax.random.key(setups[0].settings.seed), _MEMBERS)
    keys = [jax.random.fold_in(root, number) for number in numbers]
    states = [  # one after another, see `networks.init`
        learner.init_state(key, one.market, one.params, one.config)
        for key, one in zip(keys, setups, strict=True)
    ]
    return members.stack_states(states)


def _require_finite(metrics: Any, count: int, label: str) -> None:
    for name in ("reward", "actor_norm", "critic_norm"):
        if not np.isfinite(metrics[name][:, :count]).all():
            raise NotFiniteError(
                f"{label}: {name} is not finite; try a smaller lr_actor or lr_critic. What the run "
                "itself learnt is kept."
            )
