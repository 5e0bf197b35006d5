"""A trainer's files: networks alone, and whole run directories that the command line takes too."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from gm_jax.config import change
from gm_jax.errors import UserError
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.mappo.types import TrainState
from gm_jax.run import training
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import LOCK, PART, RunDirectory, write_whole, writing
from gm_jax.run.progress import say
from gm_jax.run.record import BARS, model_config, reopen
from gm_jax.run.results import stored_iterations
from gm_jax.run.setup import Setup, hyper
from gm_jax.run.source import load
from gm_jax.systems import System
from gm_jax.trainer.data import Dataset
from gm_jax.trainer.engine import Engine


TRAINER = "trainer"  # in model_config.json: which trainer wrote it
OLD = f".old{PART}"  # ends the name of a run that is being replaced


def save_checkpoint(engine: Engine, path: Path, file: dict[str, Any] | None) -> None:
    """Write the best networks in the layout `gm`.

    Args:
        engine: of the trainer.
        path: of the file; its folder is made.
        file: what networks that still wait for data were read from.

    Raises:
        UserError: no PyTorch, no networks, or the file cannot be written.
    """
    package.require_torch()
    from gm_jax.export import checkpoints  # PyTorch takes seconds to import

    if engine.waiting is not None:
        content = checkpoints.as_bytes(file)
    else:
        engine.networks()
        setup, state = engine.trained()
        run = package.trained(setup, state, engine.history)
        content = checkpoints.model_file(run, learner.chosen(state))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def load_file(engine: Engine, path: Path) -> dict[str, Any]:
    """Read networks from a `.pth` file; return its content in the layout `gm`.

    Raises:
        UserError: no PyTorch, no such file, of another system, or damaged.
    """
    package.require_torch()
    from gm_jax.export import restore

    found = restore.read(path, engine.system)
    settings = change(engine.settings, found.settings, str(path))
    other = [x for x in found.settings if getattr(settings, x) != getattr(engine.settings, x)]
    engine.begin(settings, (found.networks, found.scaler))
    use = (
        "inference; with data they are a warm start, by fresh optimisers"
        if engine.dataset is None
        else "a warm start: networks from the file, fresh optimisers, episodes from 0"
    )
    say(f"{path}: {use}")
    if other:
        say(f"settings taken from it: {', '.join(f'{x}={getattr(settings, x)}' for x in other)}")
    return found.content


def load_run(engine: Engine, path: Path) -> None:
    """Take up a run directory exactly where it was left.

    Raises:
        UserError: no run, of another system, without its data, or damaged.
    """
    directory = RunDirectory.open(path)
    setup, source = reopen(directory)
    if setup.system != engine.system:
        raise UserError(
            f"{path} is a run of the {setup.system.name} system; load it into "
            f"gm_jax.{setup.system.name.capitalize()}MAPPOTrainer."
        )
    checkpoints = Checkpoints(directory.checkpoints)
    state = checkpoints.restore(setup)
    checkpoints.close()
    done = int(state.iteration)
    history = [row for row in directory.history() if row["iteration"] <= done]
    engine.take_up(setup, Dataset(source, setup.loaded), state, history)
    engine.identity = directory.config().get(TRAINER, engine.identity)
    say(f"{path}: goes on exactly after episode {done} of {setup.settings.num_episodes}")


def save_run(engine: Engine, path: Path) -> dict[str, Any]:
    """Write a run directory, evaluate it and export its networks; return the summary.

    Raises:
        UserError: see `save_progress`.
    """
    setup = save_progress(engine, path)
    return _finished(engine, setup, engine.trained()[1], path)


def save_progress(engine: Engine, path: Path) -> Setup:
    """Write what a run is taken up from; it is made beside its place and moved there whole.

    Returns:
        The setup as it is at `path`.

    Raises:
        UserError: nothing trained, something else in the folder, or not writable.
    """
    setup, state = engine.trained()
    settings = setup.settings.replace(num_episodes=engine.planned)
    rates = hyper(settings, setup.config.num_rollouts)  # of the plan that the team learnt by
    setup = replace(setup, settings=settings, hyper=rates)
    part, old = (_beside(path, x) for x in (PART, OLD))
    _put_back(path)
    before = _earlier_export(path)
    others = before is not None and before.config()[TRAINER] != engine.identity
    try:
        with writing(part):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            setup = _written(engine, setup, state, part, path)
            shutil.rmtree(old, ignore_errors=True)
            if others:
                os.replace(path, aside := _free_beside(path))
                say(f"{path} was of another trainer, all of which is now in {aside}")
            elif path.exists():
                os.replace(path, old)
            os.replace(part, path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if before is not None:
            before.release()
    return setup


def _beside(path: Path, ending: str) -> Path:
    """Return where a run directory lies while it is replaced."""
    whole = path.absolute()
    return whole.with_name(f".{whole.name}{ending}")


def _put_back(path: Path) -> None:
    """Put a run back that lies beside its place: its replacement was cut off at the last step."""
    old = _beside(path, OLD)
    if old.exists() and not path.exists():
        os.replace(old, path)


def unfinished(system: System, folder: Path) -> Path | None:
    """Return the newest run of a trainer that has no report of its planned end.

    Args:
        system: whose run; others are left out, as are those of `gm-jax train`.
        folder: that the run directories lie in; it need not exist.
    """
    for old in folder.glob(f".*{OLD}"):
        _put_back(old.with_name(old.name[1:].removesuffix(OLD)))
    found = []
    for file in folder.glob("[!.]*/model_config.json"):
        directory = RunDirectory(file.parent)
        try:
            config = directory.config()
        except UserError as error:
            say(f"warning: {file.parent} is left out: {error}")
            continue
        done = stored_iterations(directory)
        mine = TRAINER in config and config["system"] == system.name
        if mine and (done is None or done < config["settings"]["num_episodes"]):
            found.append(file)
    return max(found, key=lambda file: file.stat().st_mtime_ns).parent if found else None


def _free_beside(path: Path) -> Path:
    """Return the first of `run-1`, `run-2`, … that is free."""
    whole = path.absolute()
    names = (whole.with_name(f"{whole.name}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _earlier_export(path: Path) -> RunDirectory | None:
    """Return the run of a trainer that is there, locked; None where there is nothing.

    Raises:
        UserError: what is there is of no trainer, or in use.
    """
    if not path.exists():
        return None
    found = {x.name for x in path.iterdir()} - {LOCK} if path.is_dir() else {path.name}
    if not found:
        return None
    directory = RunDirectory(path)
    if "model_config.json" not in found or TRAINER not in directory.config():
        raise UserError(
            f"{path} is not empty, and what is in it is no earlier export of a trainer: name "
            "another folder."
        )
    directory.lock()
    return directory


def _written(engine: Engine, setup: Setup, state: TrainState, part: Path, path: Path) -> Setup:
    """Write what a run is taken up from into `part`; return the setup as it is at `path`."""
    dataset = engine.dataset
    assert dataset is not None
    source = dataset.source
    if dataset.frame is not None:
        _write_frame(dataset, part / BARS, setup)
    elif source.data and _lies_in_a_run(Path(source.data)):
        shutil.copyfile(source.data, part / BARS)  # that run may be the one to be replaced
    if (part / BARS).exists():
        source = replace(source, data=str((path / BARS).absolute()))
        setup = replace(setup, loaded=replace(setup.loaded, label=source.label))
    directory = RunDirectory(part)
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(setup, state)
    checkpoints.close()
    directory.append_metrics(engine.history)
    directory.write("model_config.json", model_config(setup, source) | {TRAINER: engine.identity})
    return setup


def _lies_in_a_run(bars: Path) -> bool:
    return bars.name == BARS and (bars.parent / "model_config.json").exists()


def _write_frame(dataset: Dataset, path: Path, setup: Setup) -> None:
    """Write a frame as it was given, and make sure that the same bars are read from it.

    Raises:
        UserError: they are not.
    """
    frame = dataset.frame
    assert frame is not None
    frame.to_csv(path, index=isinstance(frame.index, pd.DatetimeIndex))
    source = replace(dataset.source, data=str(path))
    if load(source, setup.settings, setup.system.minutes).digest != setup.loaded.digest:
        raise UserError(
            "The DataFrame does not survive as a CSV file: other bars are read from it. Write it "
            "to a file yourself, and give the trainer that file as data."
        )


def _finished(engine: Engine, setup: Setup, state: TrainState, path: Path) -> dict[str, Any]:
    """Evaluate, draw and export a run in its place; return the summary of `train --json`."""
    directory = RunDirectory(path)
    directory.lock()
    run = training.Run(
        directory,
        setup,
        state,
        Checkpoints(directory.checkpoints),
        engine.compile_seconds,
        engine.train_seconds,
        engine.trained_steps,
    )
    run.checkpoints.newest = engine.episodes
    spent = engine.compile_seconds + engine.train_seconds
    try:
        with training.keeping(run):
            return training.finish(run, time.monotonic() - spent)
    finally:
        run.close()
