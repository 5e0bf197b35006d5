"""A sweep: settings × seeds trained side by side, ranked on validation, the best one kept whole.

`sweep.json` says from the start what was asked for, so that a sweep can be taken up again, and in
the end what came of it. Until then `members/<number>/` holds each member's metrics, state and
figures; `best/` is a run directory like any other.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from gm_jax.errors import NotFiniteError, UserError
from gm_jax.mappo import members
from gm_jax.report import plots, sweep_plots
from gm_jax.run import results, sweep_members, sweep_record, sweep_report
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import BEST, SWEEP, RunDirectory, begun, writing
from gm_jax.run.members import Launch, StoppedEarlyError, forget, train_members
from gm_jax.run.metrics import metric_rows
from gm_jax.run.progress import say
from gm_jax.run.record import model_config
from gm_jax.run.setup import Setup
from gm_jax.run.sweep_plan import Group, Plan, groups, label
from gm_jax.run.training import Run, finish, keeping
from gm_jax.systems import System


MEMBERS = "members"


@dataclass
class Sweep:
    """A sweep under way: its directory, what was asked for, and the programs that do it."""

    directory: RunDirectory
    plan: Plan
    groups: Sequence[Group]
    content: dict[str, Any]  # of sweep.json
    train_seconds: float = 0.0
    trained_steps: int = 0
    interrupted: bool = False
    noted: set[int] = field(default_factory=set)  # members whose metrics this process has cut

    def setup(self, number: int) -> Setup:
        """Return the setup of a member: settings in the order of the grid, the seeds of each."""
        setting, seed = divmod(number, self.plan.seeds)
        setup = next(
            group.setups[group.numbers.index(setting)]
            for group in self.groups
            if setting in group.numbers
        )
        settings = setup.settings.replace(seed=self.plan.base.seed + seed)
        return dataclasses.replace(setup, settings=settings)

    def member(self, number: int) -> RunDirectory:
        """Return what is kept of a member."""
        return RunDirectory(self.directory.path / MEMBERS / str(number))

    def done(self, number: int) -> bool:
        """Return whether a member's figures are there."""
        return (self.member(number).path / sweep_members.RESULT).exists()

    def kept(self) -> str:
        """Say what a sweep that ends here has kept."""
        path, count = self.directory.path, len(self.content["members"])
        done = sum(map(self.done, range(count)))
        return (
            f"{done} of {count} members are done, and what the others learnt is kept; go on with "
            f"`gm-jax sweep {self.plan.system.name} --resume {path}`."
        )

    def note(self, launch: Launch) -> None:
        """Write the metrics of a launch, of each member its own; see `Launch`."""
        chunk = launch.chunk
        for row, (number, setup) in enumerate(zip(chunk.numbers, chunk.setups, strict=True)):
            own = jax.tree.map(lambda x, row=row: x[row], launch.metrics)
            directory = self.member(number)
            if number not in self.noted:  # what an earlier try wrote past its last checkpoint
                directory.path.mkdir(parents=True, exist_ok=True)
                directory.cut_metrics(launch.done)
                self.noted.add(number)
            rows = metric_rows(setup, own, launch.done, launch.count, launch.seconds)
            directory.append_metrics(rows)
            self.trained_steps += launch.count * setup.episode_length * setup.config.num_envs
        self.train_seconds += launch.seconds


def start(plan: Plan, out: Path | None) -> Sweep:
    """Prepare a new sweep and its directory.

    Raises:
        UserError: see `sweep_plan.groups`; or the directory cannot be used.
    """
    parts = groups(plan)
    directory = RunDirectory.create(f"sweep-{plan.system.name}", out)
    content = sweep_record.asked(plan, parts)
    with begun(directory):
        directory.write(SWEEP, content)
    return Sweep(directory, plan, parts, content)


def resume(path: Path, system: System) -> Sweep:
    """Take up a sweep where it was left.

    Raises:
        UserError: no sweep, another system or version, other bars.
    """
    file = path / SWEEP
    if not file.is_file():
        raise UserError(
            f"{path} is no sweep: it has no {SWEEP}. Begin one with `gm-jax sweep`; a single run "
            "is resumed by `gm-jax train`."
        )
    directory = RunDirectory(path)
    try:
        directory.lock()
        sweep = Sweep(directory, *sweep_record.read(path, system))
        with writing(path):
            directory.clean()
    except BaseException:
        directory.release()
        raise
    return sweep


def run(sweep: Sweep) -> dict[str, Any]:
    """Train what is left, rank, and write it all; or save at the first SIGINT or SIGTERM.

    Returns:
        What `sweep --json` prints: sweep.json with the directory and the clocks.

    Raises:
        NotFiniteError: every seed of every setting broke down.
        UserError: a file cannot be written, or too little memory.
    """
    began = time.monotonic()
    try:
        with keeping(sweep), writing(sweep.directory.path):
            _train(sweep)
            if not sweep.content["finished"]:
                _conclude(sweep, began)
            forget(sweep.directory, MEMBERS)
    except StoppedEarlyError:
        sweep.interrupted = True
        say(sweep.kept())
    finally:
        sweep.directory.release()
    seconds = sweep.train_seconds
    return {
        "sweep_dir": str(sweep.directory.path),
        "best_run": None if sweep.interrupted else str(sweep.directory.path / BEST),
        **sweep.content,
        "env_steps_per_second": sweep.trained_steps / seconds if seconds else None,
        "train_seconds": seconds,
        "wall_seconds": time.monotonic() - began,
        "device": jax.devices()[0].device_kind,
    }


def _train(sweep: Sweep) -> None:
    """Train and evaluate the members of every program that are not done."""
    for warning in dict.fromkeys(
        warning for part in sweep.groups for setup in part.setups for warning in setup.warnings
    ):
        say(f"warning: {warning}")
    for place, part in enumerate(sweep.groups, 1):
        seeds = range(sweep.plan.seeds)
        numbers = [n * sweep.plan.seeds + seed for n in part.numbers for seed in seeds]
        if all(map(sweep.done, numbers)):
            continue
        name = f"program-{place}"
        say(
            f"{name} of {len(sweep.groups)}: {len(part.numbers)} settings × {len(seeds)} seeds, "
            f"{part.setups[0].settings.num_episodes} iterations"
        )
        own = train_members(sweep.directory, name, numbers, sweep.setup, _key, sweep.note)
        for trained in own:
            for row, (n, setup) in enumerate(zip(trained.numbers, trained.setups, strict=True)):
                if not sweep.done(n):
                    state = members.member(trained.state, row)
                    sweep_members.keep(sweep.member(n), sweep.directory, setup, state)
        forget(sweep.directory, name)


def _key(number: int, setup: Setup) -> jax.Array:
    """Return what `gm-jax train` with the same seed begins with."""
    del number
    return jax.random.key(setup.settings.seed)


def _conclude(sweep: Sweep, began: float) -> None:
    """Rank, write the best member's run directory and the picture, and then that it is so."""
    directory, setups = sweep.directory, [one for part in sweep.groups for one in part.setups]
    found = [sweep_members.result(sweep.member(m["member"])) for m in sweep.content["members"]]
    by_data = {setup.loaded.digest: setup for setup in setups}
    tried = {digest: results.known_trials(directory, one) for digest, one in by_data.items()}
    report = sweep_report.report(sweep.content["members"], found, tried)
    if report["best_member"] is None:
        raise NotFiniteError(
            "Every seed of every setting broke down; try smaller lr_actor and lr_critic. "
            f"{found[0]['failed']}"
        )
    if len({setup.split.validation for setup in setups}) > 1 or len(by_data) > 1:
        say("warning: not all settings are validated on the same bars: their scores differ by that")
    _write_best(sweep, report, began)
    title = f"{sweep.plan.system.name} on {Path(setups[0].loaded.label).name}"
    picture = sweep_plots.settings_side_by_side(
        report["settings"],
        report["members"],
        [label(r["settings"]) for r in report["settings"]],
        title,
    )
    plots.save(picture, directory.plots / "sweep.png")
    sweep.content = {**sweep.content, **report, "finished": True}
    directory.write(SWEEP, sweep.content)


def _write_best(sweep: Sweep, report: Mapping[str, Any], began: float) -> None:
    """Write a run directory of the best member, as if it had been trained alone."""
    number = report["best_member"]
    own, setup = sweep.member(number), sweep.setup(number)
    best = RunDirectory(sweep.directory.path / BEST)
    shutil.rmtree(best.path, ignore_errors=True)
    best.path.mkdir()
    with closing(Checkpoints(own.checkpoints)) as kept:
        state = kept.restore(setup)
    with closing(Checkpoints(best.checkpoints)) as checkpoints:
        checkpoints.save(setup, state)
        best.write("model_config.json", model_config(setup, sweep.plan.source))
        shutil.copyfile(own.metrics, best.metrics)
        history = best.history()
        whole = Run(
            best,
            setup,
            state,
            checkpoints,
            compile_seconds=math.nan,  # it was compiled with others
            train_seconds=sum(_seconds(setup, row) for row in history),
            trained_steps=history[-1]["env_steps"],
            pbo={name: report["pbo"][name]["value"] for name in results.REPORTED},
        )
        finish(whole, began)


def _seconds(setup: Setup, row: Mapping[str, Any]) -> float:
    """Return how long an iteration took."""
    return setup.episode_length * setup.config.num_envs / row["env_steps_per_second"]
