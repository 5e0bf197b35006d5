"""The largest batch that fits the memory: sizes are tried, few and never far too large ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gm_jax.config import change
from gm_jax.env import arrays
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.run import memory
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.settings import Settings
from gm_jax.systems import SYSTEMS, System
from gm_jax.trainer.data import in_class, size_class


BARS = 8_192  # of the market that stands for the trainer's
FACTORS = range(8, 16)  # of powers of two: neighbouring sizes differ by an eighth at most
MOST_TRIALS = 8
SPREAD = 1.07  # runs of one program differ by so much: threads that compile, pages of memory


class Trial(NamedTuple):
    """What one size takes, bytes."""

    program: int  # arguments, results and temporaries, by the compiler
    needed: int  # beyond what was used before, by running it


def sizes(most: int, fits: Callable[[int], bool] = lambda size: True) -> list[int]:
    """Return sizes up to `most`: small factors times powers of two.

    Args:
        most: largest.
        fits: whether a size may be used.
    """
    small = set(range(1, FACTORS.start))
    large = {factor << power for factor in FACTORS for power in range(most.bit_length())}
    return sorted(size for size in small | large if size <= most and fits(size))


def largest(
    candidates: Sequence[int], trial: Callable[[int], Trial | None], room: int, first: int
) -> int:
    """Return the largest candidate that runs within `room` bytes, tried itself.

    What a program takes grows linearly with its size, beside what compiling and running it takes
    whatever its size. Where one size is known alone, it is taken to be proportional, which is more.

    Args:
        candidates: sizes, ascending.
        trial: runs a size; None where it does not run.
        room: bytes beyond those in use.
        first: size to begin with.

    Raises:
        UserError: not even the smallest fits.
    """
    tried: dict[int, Trial | None] = {}
    size: int | None = min(candidates, key=lambda x: abs(x - first))
    best = 0
    while size is not None and len(tried) < MOST_TRIALS:
        tried[size] = trial(size)
        fitting = [x for x, found in tried.items() if found and SPREAD * found.needed <= room]
        best = max(fitting, default=0)
        failed = min((x for x in tried if x not in fitting), default=candidates[-1] + 1)
        size = _next([x for x in candidates if best < x < failed], tried, room, hopeful=not best)
    if not best:
        raise UserError(
            f"Not even {candidates[0]} fit into {room / 2**20:,.0f} MiB beyond what is in use. "
            "Give more memory, or smaller hidden_sizes or rollout_length."
        )
    return best


def _next(
    rest: Sequence[int], tried: Mapping[int, Trial | None], room: int, hopeful: bool
) -> int | None:
    """Return the next size to try; None where there is nothing to gain.

    Args:
        rest: sizes that may fit.
        tried: what is known.
        room: bytes.
        hopeful: none has fitted yet.
    """
    ran = {size: found for size, found in tried.items() if found}
    if not rest or min((x.needed - x.program for x in ran.values()), default=0) >= room:
        return None
    within = [x for x in rest if SPREAD * predicted(ran, x) <= room] if ran else []
    if len(ran) < len(tried) and within:
        return within[len(within) // 2]  # memory is not all that counts: halve what is left
    if hopeful:
        return within[-1] if within else rest[len(rest) // 4]
    if _flat(ran):
        within += [x for x in rest if x <= 2 * max(ran)]
    return max(within, default=None)


def _flat(ran: Mapping[int, Trial]) -> bool:
    """Return whether compiling takes more than running still, so that size is no matter yet."""
    small, large = (ran[x] for x in (sorted(ran)[0], sorted(ran)[-1]))
    return large.needed - small.needed < (large.program - small.program) / 2


def predicted(tried: Mapping[int, Trial], size: int) -> float:
    """Return what a size is expected to need, bytes."""
    known = sorted(tried)[-2:]
    programs = [tried[x].program for x in known]
    # the peak of a small program is that of its compilation, which a large one partly uses again
    beside = tried[known[-1]].needed - programs[-1]
    if len(known) == 1:
        return beside + programs[0] * max(size / known[0], 1)
    slope = (programs[1] - programs[0]) / (known[1] - known[0])
    return beside + programs[1] + slope * (size - known[1])


def of_function(model: Callable[[Any], Any], shape: Sequence[int]) -> Callable[[int], Trial | None]:
    """Return trials of a function of a batch [B, *shape] f32, in this process.

    Raises:
        UserError: JAX cannot trace it.
    """

    def batch(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), jnp.float32)

    try:
        jax.eval_shape(model, batch(1))
    except Exception as error:  # whatever it does with a batch of JAX
        raise UserError(
            f"{model!r} is neither a trainer nor a function of a batch [B, "
            f"{', '.join(map(str, shape))}] that JAX can trace ({type(error).__name__})."
        ) from error

    def trial(size: int) -> Trial | None:
        compiled = jax.jit(model).lower(batch(size)).compile()
        program = program_bytes(compiled)
        ran = runs(lambda: compiled(jnp.zeros((size, *shape), jnp.float32)))
        return Trial(program, program) if ran else None

    return trial


def runs(call: Callable[[], Any]) -> bool:
    """Return whether a call does not run out of memory."""
    try:
        jax.block_until_ready(call())
    except MemoryError:
        return False
    except jax.errors.JaxRuntimeError as error:
        if not memory.ran_out(error):
            raise
        return False
    return True


def program_bytes(compiled: Any) -> int:
    """Return what a compiled program holds at most while it runs, bytes."""
    found: Any = compiled.memory_analysis()
    parts = ("argument", "output", "temp")
    total = sum(getattr(found, f"{part}_size_in_bytes") for part in parts)
    return int(total - found.alias_size_in_bytes)


def of_training(
    system: System, settings: Settings, bars: int, here: bool
) -> Callable[[int], Trial | None]:
    """Return trials of numbers of environments: two rollouts with an update of two epochs each.

    Args:
        system: whose team.
        settings: of the trainer.
        bars: length of the market's arrays.
        here: run them in this process, which alone has the GPU; otherwise each in one of its own,
            compiled from nothing, whose peak is measured.
    """

    def trial(size: int) -> Trial | None:
        say(f"trying {size} environments")
        if not here:
            return _in_child(system, settings, bars, size)
        program: list[int] = []
        setup = stand_in(system, _short(settings, size), bars)
        ran = runs(lambda: program.append(run_once(setup)))
        return Trial(program[0], program[0]) if ran else None

    return trial


def stand_in(system: System, settings: Settings, bars: int = 0) -> Setup:
    """Return a setup of a trainer's shapes on a small generated market.

    Args:
        system: whose team.
        settings: of the trainer.
        bars: length of the market's arrays, if that is more.
    """
    warmup = arrays.warmup(settings.features, system.minutes, system.team)
    small = settings.replace(market_bars=max(BARS, 2 * warmup), market_parameters={})
    small = small.replace(walk_forward=0, null_copies=0, tick_points=0.25)  # the market's tick
    setup = prepare(system, small, load(Source(market="planted"), small, system.minutes))
    return in_class(setup, max(bars, size_class(len(setup.loaded.bars))))


def _short(settings: Settings, size: int) -> Settings:
    """Return the settings of a trial: more rollouts and epochs take time and no more memory."""
    rollouts = min(2, settings.episode_length // settings.rollout_length)
    return settings.replace(
        num_envs=size,
        num_epochs=min(2, settings.num_epochs),
        episode_length=rollouts * settings.rollout_length,
    )


def run_once(setup: Setup) -> int:
    """Compile the program, train one iteration, and return the bytes of the program."""
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    compiled = learner.train.lower(state, jnp.int32(1), *arguments, config=setup.config).compile()
    kept = jax.tree.map(jnp.copy, state)  # as `Engine.launch` does
    jax.block_until_ready((compiled(state, jnp.int32(1), *arguments), kept))
    return program_bytes(compiled)


def _in_child(system: System, settings: Settings, bars: int, size: int) -> Trial | None:
    """Return what a process of its own measures; None where it was killed."""
    short = _short(settings, size).to_json()
    job = {"system": system.name, "settings": short, "bars": bars}
    done = subprocess.run(
        [sys.executable, "-c", "from gm_jax import batch_trials; batch_trials.child()"],
        input=json.dumps(job),
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        if done.returncode > 0 and not memory.ran_out(done.stderr):
            raise RuntimeError(f"a trial of {size} environments failed:\n{done.stderr[-2000:]}")
        return None
    return Trial(*json.loads(done.stdout.splitlines()[-1]))


def child() -> None:
    """Run one trial as it stands on standard input; print its two figures."""
    job = json.load(sys.stdin)
    system = SYSTEMS[job["system"]]
    settings = change(system.settings, job["settings"], "trial")
    before = memory.resident()  # of a process that is about to load its bars
    program = run_once(stand_in(system, settings, job["bars"]))
    print(json.dumps(Trial(program, memory.peak_resident() - before)))
