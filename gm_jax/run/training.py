"""The host's loop: compile once, launch intervals, log, save, and report at the end."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.types import Metrics, TrainState
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.progress import Progress, memory_bytes, say
from gm_jax.run.record import model_config, reopen
from gm_jax.run.results import write_results
from gm_jax.run.setup import MAX_INTERVAL, Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.settings import Settings
from gm_jax.systems import System


INTERVAL_SECONDS = 2.0  # how long one launch should take: what Ctrl-C and the screen wait for
SAVE_SECONDS = 20.0  # at most this much work is lost to a power cut


class NotFiniteError(Exception):
    """A loss or reward became NaN or infinite."""


@dataclass
class Run:
    """A run under way: its directory, its arguments and where it stands."""

    directory: RunDirectory
    setup: Setup
    state: TrainState
    checkpoints: Checkpoints
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    trained_steps: int = 0
    interrupted: bool = False


def start(system: System, settings: Settings, source: Source, out: Path | None) -> Run:
    """Prepare a new run and its directory."""
    loaded = load(source, settings, system.minutes)
    setup = prepare(system, settings, loaded)
    directory = RunDirectory.create(system.name, out)
    directory.write("model_config.json", model_config(setup, source))
    state = learner.init_state(
        jax.random.key(settings.seed), setup.market, setup.params, setup.config
    )
    checkpoints = Checkpoints(directory.checkpoints, create=True)
    checkpoints.save(state)
    return Run(directory, setup, state, checkpoints)


def resume(path: Path, system: System | None = None, num_episodes: int | None = None) -> Run:
    """Take up a run where its newest checkpoint left it.

    Args:
        path: the run directory.
        system: what the run is expected to be of.
        num_episodes: a new length, not shorter than what is done.

    Raises:
        UserError: no run, another system, other data, a checkpoint that does not fit, too short.
    """
    directory = RunDirectory.open(path)
    setup, source = reopen(directory)
    if system not in (None, setup.system):
        name = setup.system.name
        raise UserError(f"{path} is a {name} run: gm-jax train {name} --resume {path}")
    if num_episodes is not None:
        settings = setup.settings.replace(num_episodes=num_episodes)
        setup = prepare(setup.system, settings, setup.loaded)
    checkpoints = Checkpoints(directory.checkpoints)
    state = checkpoints.restore(setup)
    done = int(state.iteration)
    if done > setup.settings.num_episodes:
        raise UserError(f"{path} has already done {done} iterations, more than {num_episodes}.")
    directory.history()  # readable, before anything is written
    directory.write("model_config.json", model_config(setup, source))
    directory.cut_metrics(done)
    return Run(directory, setup, state, checkpoints)


def train(run: Run) -> dict[str, Any]:
    """Train to the planned end, or to the first Ctrl-C, then evaluate and report.

    Returns:
        The summary of `train --json`.

    Raises:
        NotFiniteError: a loss became NaN; the last good state is kept.
    """
    began = time.monotonic()
    setup, total = run.setup, run.setup.settings.num_episodes
    for warning in setup.warnings:
        say(f"warning: {warning}")
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    compiled = learner.train.lower(
        run.state, jnp.int32(1), *arguments, config=setup.config
    ).compile()
    run.compile_seconds = time.monotonic() - began
    done, count, saved = int(run.state.iteration), 1, time.monotonic()
    progress = Progress(done, total)
    with _first_interrupt() as interrupted:
        while done < total and not interrupted():
            tick = time.monotonic()
            run.state, metrics = compiled(run.state, jnp.int32(count), *arguments)
            metrics = jax.device_get(metrics)
            seconds = time.monotonic() - tick
            rows = metric_rows(setup, metrics, done, count, seconds)
            _require_finite(rows, run.directory)
            run.directory.append_metrics(rows)
            run.train_seconds += seconds
            run.trained_steps += count * setup.episode_length * setup.config.num_envs
            done += count
            progress.update(rows)
            if time.monotonic() - saved > SAVE_SECONDS or done == total or interrupted():
                run.checkpoints.save(run.state)
                saved = time.monotonic()
            count = _next_count(count, seconds, total - done)
        run.interrupted = interrupted()
    progress.close()
    run.checkpoints.save(run.state)
    run.checkpoints.close()
    return finish(run, began)


def _next_count(count: int, seconds: float, left: int) -> int:
    """Return how many iterations the next launch runs: the results do not depend on it."""
    wanted = round(count * INTERVAL_SECONDS / max(seconds, 1e-3))
    return max(1, min(wanted, 2 * count, MAX_INTERVAL, left))


@contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to end after the interval; the second ends at once."""
    seen = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True
        say("Interrupted: saving after this interval; Ctrl-C again to stop at once.")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, as under some notebooks: theirs stays
        yield lambda: False
        return
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


def metric_rows(
    setup: Setup, metrics: Metrics, done: int, count: int, seconds: float
) -> list[dict[str, Any]]:
    """Return the metrics of an interval as a plain row per iteration.

    Args:
        setup: of the run.
        metrics: [interval, ...] each, on the host.
        done: iterations before the interval.
        count: iterations of the interval.
        seconds: it took.
    """
    steps = setup.episode_length * setup.config.num_envs
    rows = []
    for i in range(count):
        values = jax.tree.map(lambda x, i=i: x[i], metrics)
        row: dict[str, Any] = {"iteration": done + i + 1, "env_steps": (done + i + 1) * steps}
        for name, value in sorted(values.items()):
            if isinstance(value, dict):
                row[name] = {k: float(v) for k, v in value.items()}
            elif np.ndim(value):
                row[name] = dict(zip(setup.system.agents, map(float, value), strict=True))
            else:
                number = float(value)
                row[name] = number if math.isfinite(number) else None
        row |= {
            "episodes_per_minute": 60 * count * setup.config.num_envs / seconds,
            "env_steps_per_second": count * steps / seconds,
            "memory_bytes": memory_bytes(),
        }
        rows.append(row)
    return rows


def _require_finite(rows: list[dict[str, Any]], directory: RunDirectory) -> None:
    names = ("reward", "actor_loss", "critic_loss", "entropy")
    values = ((row, name, *item) for row in rows for name in names for item in row[name].items())
    for row, name, agent, value in values:
        if not math.isfinite(value):
            raise NotFiniteError(
                f"Iteration {row['iteration']}: {name} of {agent} is {value}. The last good state "
                f"is kept in {directory.checkpoints}; a smaller lr_actor or lr_critic usually "
                "mends it."
            )


def finish(run: Run, began: float) -> dict[str, Any]:
    """Evaluate, write the statistics and return the summary of `train --json`."""
    setup, best = run.setup, run.state.best
    write_results(run.directory, setup, run.state)
    sharpe, score = float(best.sharpe), float(best.score)
    rate = run.trained_steps / run.train_seconds if run.train_seconds else None
    summary = {
        "run_dir": str(run.directory.path),
        "system": setup.system.name,
        "env_steps": int(run.state.iteration) * setup.episode_length * setup.config.num_envs,
        "env_steps_per_second": rate,
        "compile_seconds": run.compile_seconds,
        "wall_seconds": time.monotonic() - began,
        "best_validation_sharpe": sharpe if math.isfinite(sharpe) else None,
        "selection_score": score if math.isfinite(score) else None,
        "device": jax.devices()[0].device_kind,
    }
    more = {"best_iteration": int(best.iteration), "interrupted": run.interrupted}
    run.directory.write("training_statistics.json", summary | more)
    return summary
