"""Training many members beside a run: chunks that fit the memory, saved as they go."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import Array
from gm_jax.errors import NotFiniteError, UserError
from gm_jax.mappo import learner, members
from gm_jax.mappo.types import Networks, TrainState
from gm_jax.run import memory, pace
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory, write_whole
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
    axes: Any  # of the arguments, see `members.axes_of`
    run: Any  # (state, iterations, market, params, hyper, segments) -> (state, metrics)


@dataclass(frozen=True)
class Chunk:
    """Members that are trained side by side."""

    numbers: tuple[int, ...]
    setups: tuple[Setup, ...]
    label: str  # what a person calls them

    def filled(self, size: int) -> Chunk:
        """Return `size` members, the last one repeated: one shape, one compilation."""
        more = size - len(self.numbers)
        numbers, setups = self.numbers + self.numbers[-1:] * more, self.setups[-1:] * more
        return Chunk(numbers, self.setups + setups, self.label)


@dataclass(frozen=True)
class Launch:
    """What one launch of a program did."""

    chunk: Chunk
    metrics: Any  # [M, interval, …] each, on the host; M may be more than the chunk's members
    done: int  # iterations before it
    count: int  # iterations it ran
    seconds: float  # it took


@dataclass(frozen=True)
class Trained:
    """Some members, trained."""

    numbers: tuple[int, ...]
    setups: tuple[Setup, ...]
    state: TrainState  # leaves [M, …] but for the counters; M may be more than `numbers`

    @cached_property
    def networks(self) -> Networks:
        """Those that validation chose, one for each of `numbers`."""
        return jax.tree.map(partial(_first, len(self.numbers)), members.chosen(self.state))


def train_members(
    directory: RunDirectory,
    name: str,
    numbers: Sequence[int],
    make: Callable[[int], Setup],
    key: Callable[[int, Setup], Array] | None = None,
    watch: Callable[[Launch], None] | None = None,
) -> Iterator[Trained]:
    """Train a team for each number, in as few programs as fit the memory.

    Their states lie in `<name>/` until `forget`: who is interrupted trains nothing twice.

    Args:
        directory: of the run.
        name: what the members are, for a person and for the folder.
        numbers: of the members.
        make: returns the setup of a member; all have the same shapes, `config` and length. What
            the first and the last have as one object, all have.
        key: returns what a member's training is drawn from; by default drawn from the run's seed.
        watch: is told of every launch before the state is saved; by default `require_finite`.

    Raises:
        StoppedEarlyError: a signal came; the state is saved.
        NotFiniteError: see `require_finite`.
    """
    program: Program | None = None
    usual, begin, folder = 0, 0, directory.path / name
    while begin < len(numbers):
        left = numbers[begin:]
        one, other = make(left[0]), make(left[-1])
        key, watch = key or drawn_from(one.settings.seed), watch or require_finite
        begun = _begun_size(folder, left, one)
        if program is None or program.size != (begun or usual):
            program = fitting_program(one, other, len(left), begun)
            usual = usual if begun else program.size
        mine = tuple(left[: program.size])
        label = f"{name}: {begin + 1}-{begin + len(mine)} of {len(numbers)}"
        chunk = Chunk(mine, tuple(map(make, mine)), label)
        _note_begun(folder, chunk, program.size)
        state = _train(folder, program, chunk, key, watch)
        yield Trained(chunk.numbers, chunk.setups, state)
        begin += len(mine)


def drawn_from(seed: int) -> Callable[[int, Setup], Array]:
    """Return what draws members' keys from the run's seed, none that the run itself draws."""
    root = jax.random.fold_in(jax.random.key(seed), _MEMBERS)
    return lambda number, setup: jax.random.fold_in(root, number)


def require_finite(launch: Launch) -> None:
    """Raise NotFiniteError where a reward or a network of a member is NaN or infinite."""
    _require_finite(launch.metrics, launch.count, launch.chunk.label)


def _first(count: int, leaf: Array) -> Array:
    return leaf[:count]


def forget(directory: RunDirectory, name: str) -> None:
    """Remove the states of members whose results are written."""
    shutil.rmtree(directory.path / name, ignore_errors=True)


def _note_begun(folder: Path, chunk: Chunk, size: int) -> None:
    """Write down of what size a chunk is: of another it would begin anew."""
    folder.mkdir(parents=True, exist_ok=True)
    what = {"size": size, "members": len(chunk.numbers), "first": _identity_of(chunk)}
    write_whole(folder / f"begun-{chunk.numbers[0]}.json", json.dumps(what))


def _begun_size(folder: Path, numbers: Sequence[int], one: Setup) -> int | None:
    """Return the size of the chunk that an earlier try began with the first of these members.

    Args:
        folder: of the members.
        numbers: of those that are left.
        one: setup of the first.
    """
    file = folder / f"begun-{numbers[0]}.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    same = found["first"] == _identity_of(Chunk(tuple(numbers[:1]), (one,), ""))
    # of fewer members it would be another chunk
    whole = found["members"] == min(found["size"], len(numbers))
    return int(found["size"]) if same and whole else None


def _identity_of(chunk: Chunk) -> str:
    return _identity(chunk.numbers[:1], chunk.setups[:1])


def fitting_program(one: Setup, other: Setup, count: int, begun: int | None = None) -> Program:
    """Return the program of as many members as train within the memory that is free.

    Chunks are equal, so that the last is filled up by few, but for one that was begun.

    Args:
        one: setup of a member.
        other: setup of another, to tell what they share.
        count: members there are.
        begun: size of a chunk that an earlier try has begun: where it may not fit, that is a
            warning.
    """
    axes = axes_of((one, other)[: max(count, begun or 0)])
    size = begun or math.ceil(count / math.ceil(count / MOST))
    while True:
        compiled = _compile(one, axes, size)
        analysis: Any = compiled.memory_analysis()
        # for a moment, what is stacked exists twice
        needed = int(2 * analysis.argument_size_in_bytes + analysis.temp_size_in_bytes)
        takes = f"memory: {size} members need {needed / 2**30:.1f} GiB"
        if size == 1 or needed < MEMORY_SHARE * memory.device()["free"]:
            return Program(size, axes, compiled)
        if begun:
            say(f"warning: {takes}, as they were begun, and less is free")
            return Program(size, axes, compiled)
        say(f"{takes}, fewer are trained at a time")
        size = math.ceil(count / (2 * math.ceil(count / size)))


def arguments(setup: Setup) -> members.Arguments:
    """Return what the program takes beside the state."""
    return setup.market, setup.params, setup.hyper, setup.segments


def axes_of(setups: Sequence[Setup]) -> Any:
    """Return which of the arguments have a member axis, see `members.axes_of`."""
    market, params, hyper, segments = members.axes_of([arguments(setup) for setup in setups])
    # with these apart, validation would be no branch any more
    return market, params, hyper.replace(num_updates=None, validate_every=None), segments


def _compile(setup: Setup, axes: Any, size: int) -> Any:
    """Compile the program of so many members."""

    def shape(x: Any, axis: int | None) -> Any:
        return jax.ShapeDtypeStruct(x.shape if axis is None else (size, *x.shape), x.dtype)

    state = learner.abstract_state(setup.market, setup.params, setup.config)
    wide = jax.tree.map(lambda x: shape(x, 0), state)
    structure: Any = jax.tree.structure(arguments(setup))
    flat = structure.flatten_up_to(axes)  # None is an axis here, no empty tree
    leaves = map(shape, jax.tree.leaves(arguments(setup)), flat)
    return members.train.lower(
        wide.replace(update=state.update, iteration=state.iteration),
        jnp.int32(1),
        *structure.unflatten(leaves),
        config=setup.config,
        axes=tuple(flat),
    ).compile()


def _train(
    folder: Path,
    program: Program,
    chunk: Chunk,
    key: Callable[[int, Setup], Array],
    watch: Callable[[Launch], None],
) -> TrainState:
    """Train one chunk to the end, from where an earlier try left it; return its state."""
    full = chunk.filled(program.size)
    setup = chunk.setups[0]
    total = setup.settings.num_episodes
    rest = members.stack([arguments(one) for one in full.setups], program.axes)
    checkpoints = Checkpoints(folder / _identity(full.numbers, full.setups), members=program.size)
    with closing(checkpoints), first_is_a_wish() as wished:
        state = _begin(checkpoints, full, key)
        first = done = int(state.iteration)
        count, saved = 1, (began := time.monotonic())
        while done < total:
            tick = time.monotonic()
            state, metrics = program.run(state, jnp.int32(count), *rest)
            metrics, now = jax.device_get(metrics), time.monotonic()
            watch(Launch(chunk, metrics, done, count, now - tick))
            done += count
            left = (now - began) / (done - first) * (total - done)
            say(f"{chunk.label}  iteration {done}/{total}  left {clock(left)}")
            if wished() or done == total or now - saved > pace.SAVE_SECONDS:
                checkpoints.save(setup, state)
                saved = now
            if wished():
                raise StoppedEarlyError
            count = pace.next_count(count, now - tick, total - done)
    return state


def _identity(numbers: Sequence[int], setups: Sequence[Setup]) -> str:
    """Return a name for a chunk that no other has, whatever else was trained here before."""
    what = [
        (number, one.loaded.digest, one.loaded.mandate_digest, one.split, one.settings.num_episodes)
        for number, one in zip(numbers, setups, strict=True)
    ]
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _begin(
    checkpoints: Checkpoints, chunk: Chunk, key: Callable[[int, Setup], Array]
) -> TrainState:
    """Return the states that an earlier try left, or fresh ones."""
    if checkpoints.any():
        try:
            state = checkpoints.restore(chunk.setups[0])
            checkpoints.cut(int(state.iteration))  # newer ones are damaged
            return state
        except UserError:
            say(f"warning: nothing in {checkpoints.directory} can be used, it is trained anew")
            shutil.rmtree(checkpoints.directory)
    states = [  # one after another, see `networks.init`
        learner.init_state(key(number, one), one.market, one.params, one.config)
        for number, one in zip(chunk.numbers, chunk.setups, strict=True)
    ]
    return members.stack_states(states)


def _require_finite(metrics: Any, count: int, label: str) -> None:
    for name in ("reward", "actor_norm", "critic_norm"):
        if not np.isfinite(metrics[name][:, :count]).all():
            raise NotFiniteError(
                f"{label}: {name} is not finite; try a smaller lr_actor or lr_critic. What the run "
                "itself learnt is kept."
            )
