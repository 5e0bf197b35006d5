"""The host's loop: compile once, launch intervals, log, save, and report at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax

from gm_jax.config import change
from gm_jax.errors import LostProcessError, NotFiniteError, UserError
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.mappo.types import TrainState
from gm_jax.run import launch, memory, pace, tracking
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory, WriteError, begun, writing
from gm_jax.run.launch import Compiled, Program
from gm_jax.run.mandate import load_all
from gm_jax.run.members import StoppedEarlyError
from gm_jax.run.metrics import metric_rows, require_finite
from gm_jax.run.progress import Progress, say
from gm_jax.run.record import model_config, reopen
from gm_jax.run.results import analyse, write_results
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.signals import first_is_a_wish
from gm_jax.run.source import Source
from gm_jax.run.tracking import Trackers, Wanted
from gm_jax.settings import Settings
from gm_jax.systems import System


UNTRACKED = Wanted()


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
    pbo: Mapping[str, float | None] = field(default_factory=dict)  # see `results.write_results`
    compiled: Compiled | None = None  # None: that is yet to be done
    source: Source | None = None  # of the bars, where it is to be trained
    began: float = field(default_factory=time.monotonic)
    trackers: Trackers = field(default_factory=Trackers)

    def kept(self) -> str:
        """Say what a run that ends here has kept."""
        path = self.directory.path
        return (
            f"The checkpoint of iteration {self.checkpoints.newest} is kept; go on with "
            f"`gm-jax train {self.setup.system.name} --resume {path}`."
        )

    def close(self) -> None:
        """Let go of the directory."""
        self.trackers.close()
        self.checkpoints.close()
        self.directory.release()


def start(
    system: System,
    settings: Settings,
    source: Source,
    out: Path | None,
    wanted: Wanted = UNTRACKED,
) -> Run:
    """Prepare a new run and its directory."""
    began, loaded = time.monotonic(), load_all(source, settings, system.minutes)
    setup = prepare(system, settings, loaded)
    directory = RunDirectory.create(system.name, out)
    with begun(directory):
        compiled = launch.together(setup, source)
        setup = compiled.setup
        state = learner.init_state(
            jax.random.key(settings.seed), setup.market, setup.params, setup.config
        )
        checkpoints = Checkpoints(directory.checkpoints)
        checkpoints.save(setup, state)
        directory.write("model_config.json", model_config(setup, source))
        trackers = tracking.begin(directory, setup, wanted)
    return Run(
        directory,
        setup,
        state,
        checkpoints,
        trackers=trackers,
        compiled=compiled,
        source=source,
        began=began,
    )


def resume(
    path: Path,
    system: System | None = None,
    changes: Mapping[str, Any] | None = None,
    wanted: Wanted = UNTRACKED,
) -> Run:
    """Take up a run where its newest checkpoint left it.

    Args:
        path: the run directory.
        system: what the run is expected to be of.
        changes: new values of `CHANGEABLE` settings; a length not shorter than what is done.
        wanted: trackers beside those that the run had.

    Raises:
        UserError: no run, another system, other data, a checkpoint that does not fit, too short.
    """
    directory = RunDirectory.open(path)
    try:
        directory.lock()
        return _take_up(directory, system, changes or {}, wanted)
    except BaseException:
        directory.release()
        raise


def _take_up(
    directory: RunDirectory, system: System | None, changes: Mapping[str, Any], wanted: Wanted
) -> Run:
    path = directory.path
    setup, source = reopen(directory)
    if system not in (None, setup.system):
        name = setup.system.name
        raise UserError(f"{path} is a {name} run: gm-jax train {name} --resume {path}")
    if changes:
        settings = change(setup.settings, changes, "--resume")
        setup = prepare(setup.system, settings, setup.loaded)
    checkpoints = Checkpoints(directory.checkpoints)
    run = Run(directory, setup, checkpoints.restore(setup), checkpoints, source=source)
    done = int(run.state.iteration)
    if done > setup.settings.num_episodes:
        planned = setup.settings.num_episodes
        raise UserError(f"{path} has already done {done} iterations, more than {planned}.")
    directory.history()  # readable, before anything is written
    with keeping(run), writing(path):
        directory.clean()
        checkpoints.cut(done)
        directory.write("model_config.json", model_config(setup, source))
        directory.cut_metrics(done)
        run.trackers = tracking.begin(directory, setup, wanted)
    return run


class _Kept(Protocol):
    """A run, or a sweep of many."""

    directory: RunDirectory

    def kept(self) -> str:
        """Say what is kept where it ends here."""


@contextmanager
def keeping(run: _Kept) -> Iterator[None]:
    """Say what is kept of a run that cannot be written to, is interrupted or out of memory."""
    try:
        yield
    except WriteError as error:
        run.directory.clean()
        raise UserError(f"{error} {run.kept()}") from error
    except jax.errors.JaxRuntimeError as error:
        if not memory.ran_out(error):
            raise
        raise UserError(
            "The device has too little memory: free some of it and go on, or train anew with fewer "
            f"environments (num_envs=…). {run.kept()}"
        ) from error
    except (KeyboardInterrupt, LostProcessError):
        say(run.kept())
        raise


def train(run: Run) -> dict[str, Any]:
    """Train to the planned end, or to the first SIGINT or SIGTERM, then evaluate and report.

    Returns:
        The summary of `train --json`.

    Raises:
        NotFiniteError: a reward, a loss or a network became NaN; the last good state is kept.
        UserError: a file cannot be written, or too little memory; the last checkpoint is kept.
    """
    for warning in run.setup.warnings:
        say(f"warning: {warning}")
    try:
        with keeping(run):
            _iterate(run)
            return finish(run, run.began)
    finally:
        run.close()


def _iterate(run: Run) -> None:
    """Compile once; launch intervals, log and save until the end or a signal."""
    setup, total, done = run.setup, run.setup.settings.num_episodes, int(run.state.iteration)
    if done == total:  # only the results were missing
        return
    assert run.source is not None
    compiled = run.compiled or launch.together(setup, run.source, begun=True)
    run.compile_seconds = compiled.seconds
    count, saved = 1, time.monotonic()
    with (
        Program(compiled, run.state) as program,
        first_is_a_wish() as interrupted,
        closing(Progress(done, total)) as progress,
    ):
        while done < total and not interrupted():
            tick = time.monotonic()
            metrics = program.run(count)
            seconds = time.monotonic() - tick
            rows = metric_rows(setup, metrics, done, count, seconds)
            run.directory.append_metrics(rows)
            kept = f"is kept in {run.checkpoints.directory}"
            require_finite(rows, f"of iteration {run.checkpoints.newest}, {kept}")
            run.trackers.log(rows)
            run.train_seconds += seconds
            run.trained_steps += count * setup.episode_length * setup.config.num_envs
            done += count
            progress.update(rows)
            if time.monotonic() - saved > pace.SAVE_SECONDS:
                run.checkpoints.save(setup, program.state())
                saved = time.monotonic()
            count = pace.next_count(count, seconds, total - done)
        run.state = program.state()
        run.checkpoints.save(setup, run.state)
        run.interrupted = interrupted()


def finish(run: Run, began: float) -> dict[str, Any]:
    """Evaluate, write the statistics, analyse, export; return the summary of `train --json`.

    A run that was interrupted, or is not at its planned end, is not analysed.
    """
    setup, directory = run.setup, run.directory
    with writing(directory.path):
        found = write_results(directory, setup, run.state, run.pbo)
        summary = _write_statistics(run, began)
        settings, whole = setup.settings, int(run.state.iteration) == setup.settings.num_episodes
        run.trackers.report(summary["env_steps"], found)
        if (settings.null_copies or settings.walk_forward) and whole and not run.interrupted:
            _analyse(run, found)
            summary = _write_statistics(run, began)
        _export(run)
    return summary


def _analyse(run: Run, found: dict[str, Any]) -> None:
    """Do what analyses were asked for; a signal ends them and is remembered.

    Raises:
        UserError, NotFiniteError: one cannot be done; the run is exported without it.
    """
    mend = (
        f"The run itself is whole: `gm-jax train {run.setup.system.name} --resume "
        f"{run.directory.path} --null 0 --walk-forward 0` ends it without its analyses."
    )
    try:
        analyse(run.directory, run.setup, run.state, found)
    except StoppedEarlyError:
        run.interrupted = True
        say(run.kept())
    except WriteError:
        raise
    except (UserError, NotFiniteError) as error:
        _export(run)
        raise type(error)(f"{error} {mend}") from error
    except jax.errors.JaxRuntimeError as error:
        if not memory.ran_out(error):
            raise
        _export(run)
        raise UserError(f"The device has too little memory for the analyses. {mend}") from error


def _export(run: Run) -> None:
    """Export the networks, or say how to do it later."""
    path = run.directory.path
    if not package.available():
        say(
            "PyTorch is not installed, nothing was exported; to do it later: "
            f"pip install torch && gm-jax export {path}"
        )
        return
    exported = package.export(run.directory, run.setup, run.state)
    say(f"exported        {len(exported['files'])} files for PyTorch, see {path}/README.md")


def _write_statistics(run: Run, began: float) -> dict[str, Any]:
    """Write training_statistics.json; what a run took that was finished before stays."""
    setup, best, path = run.setup, run.state.best, run.directory.path / "training_statistics.json"
    sharpe, score = float(best.sharpe), float(best.score)
    rows = run.directory.history()  # windows of a trainer may have had several lengths
    summary = {
        "run_dir": str(run.directory.path),
        "system": setup.system.name,
        "env_steps": rows[-1]["env_steps"] if rows else 0,
        "env_steps_per_second": run.trained_steps / run.train_seconds
        if run.train_seconds
        else None,
        "compile_seconds": run.compile_seconds,
        "wall_seconds": time.monotonic() - began,
        "best_validation_sharpe": sharpe if math.isfinite(sharpe) else None,
        "selection_score": score if math.isfinite(score) else None,
        "device": jax.devices()[0].device_kind,
    }
    if not run.trained_steps and path.exists():
        before = json.loads(path.read_text())
        clocks = ("env_steps_per_second", "compile_seconds", "wall_seconds", "device")
        summary |= {name: before[name] for name in clocks}
    more = {"best_iteration": int(best.iteration), "interrupted": run.interrupted}
    run.directory.write(path.name, summary | more)
    return summary
