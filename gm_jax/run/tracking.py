"""Tracking: what metrics.jsonl says, told to TensorBoard and Weights & Biases as a run goes on.

A tracker never decides over a run: one that cannot be written to is left, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from gm_jax.errors import UserError
from gm_jax.run.directory import RunDirectory
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup
from gm_jax.run.trackers import TensorBoard, Tracker, WandB, first_line


PROJECT = "gm_jax"  # of W&B, where none is named
RECORD = "tracking.json"  # in a run directory: what it is tracked by
FOLDER = "tensorboard"
# what a tracker is made with: extra, package, something that the package has
_NEEDED = {"tensorboard": ("tensorboardX", "SummaryWriter"), "wandb": ("wandb", "init")}
# of each split of a report
FIGURES = ("sharpe_ratio", "max_drawdown", "net_pnl", "total_return", "exposure", "oracle_share")
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Wanted:
    """Which trackers are wanted."""

    tensorboard: bool = False
    wandb: str | None = None  # project; "" for that of before, or PROJECT
    wandb_id: str | None = None  # run of W&B that goes on; None for a new one

    def missing(self) -> list[str]:
        """Return the extras that are wanted and not installed."""
        asked = {"tensorboard": self.tensorboard, "wandb": self.wandb is not None}
        return [extra for extra, wanted in asked.items() if wanted and not _installed(extra)]


def _installed(extra: str) -> bool:
    package, content = _NEEDED[extra]
    try:
        # the folder `wandb` that W&B leaves behind can be imported too, and is empty
        return hasattr(import_module(package), content)
    except ImportError:
        return False


def require(wanted: Wanted) -> None:
    """Refuse to track by what is not installed.

    Raises:
        UserError: names what to install.
    """
    for extra in wanted.missing():
        raise UserError(
            f"--{extra} needs {_NEEDED[extra][0]}, which is not installed: pip install -e "
            f"'.[{extra}]', or leave --{extra} out. Nothing was begun."
        )


@dataclass
class Trackers:
    """The trackers of a run; one that fails is left with a warning, the run goes on."""

    directory: RunDirectory | None = None
    open: list[Tracker] = field(default_factory=list)

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell rows of metrics, a figure per leaf, at the environment's steps."""

        def tell(tracker: Tracker) -> None:
            for step, figures in _flattened(rows):
                tracker.log(step, figures)
            tracker.flush()

        self._each(tell)

    def report(self, step: int, results: Mapping[str, Any]) -> None:
        """Tell what a run came to.

        Args:
            step: environment steps done.
            results: of `results.write_results`.
        """

        def tell(tracker: Tracker) -> None:
            tracker.report(step, headline(results))
            tracker.flush()

        self._each(tell)

    def close(self) -> None:
        """End all."""
        self._each(lambda tracker: tracker.close())
        self.open = []

    def add(self, name: str, make: Callable[[], Tracker]) -> None:
        """Begin with one."""
        try:
            self.open.append(make())
        except Exception as error:
            self._left(name, error)

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in [*self.open]:
            try:
                tell(tracker)
            except Exception as error:  # a full disk, or any of the kinds that W&B raises
                self.open.remove(tracker)
                self._left(tracker.name, error)

    def _left(self, name: str, error: Exception) -> None:
        path = self.directory.metrics if self.directory else "metrics.jsonl"
        say(
            f"warning: {name} failed, the run goes on without it: {first_line(error)} "
            f"({type(error).__name__}). {path} has every row."
        )


def begin(directory: RunDirectory, setup: Setup, wanted: Wanted) -> Trackers:
    """Begin or take up the tracking of a run, by what is wanted and what tracked it before.

    Iterations that a tracker has not been told are told it now.

    Args:
        directory: of the run, its metrics not past its state.
        setup: of the run.
        wanted: beside what `RECORD` names.

    Raises:
        UserError: `RECORD` is not what this writes, or cannot be written.
    """
    trackers, before = Trackers(directory), _recorded(directory)
    wanted = _joined(wanted, before)
    if wanted == Wanted():
        return trackers
    wandb_id = wanted.wandb_id or uuid4().hex[:8]
    run = {"project": wanted.wandb, "id": wandb_id} if wanted.wandb is not None else None
    directory.write(RECORD, {"tensorboard": wanted.tensorboard, "wandb": run})
    absent = wanted.missing()
    for extra in absent:  # only of a run that is taken up, see `require`
        say(f"warning: the run goes on without --{extra}: {_NEEDED[extra][0]} is not installed")
    config = described(setup)
    rows = _flattened(directory.history())
    if wanted.tensorboard and "tensorboard" not in absent:
        folder, step = directory.path / FOLDER, rows[-1][0] if rows else 0
        aims = [f"{split}/{name}" for split in SPLITS for name in FIGURES]
        trackers.add(TensorBoard.name, lambda: TensorBoard(folder, config, aims, rows, step))
        if trackers.open:
            say(f"TensorBoard     tensorboard --logdir {folder}")
    if wanted.wandb is not None and "wandb" not in absent:
        project, untold = wanted.wandb, [] if wanted.wandb_id else rows
        trackers.add(WandB.name, lambda: WandB(directory.path, project, wandb_id, config, untold))
    return trackers


def _recorded(directory: RunDirectory) -> Wanted:
    """Return what tracked a run before."""
    path = directory.path / RECORD
    if not path.exists():
        return Wanted()
    try:
        found = json.loads(path.read_text())
        run = found["wandb"] or {"project": None, "id": None}
        return Wanted(found["tensorboard"], run["project"], run["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not what `gm-jax train` writes ({error}); delete it, and name trackers "
            "anew by --tensorboard and --wandb."
        ) from error


def _joined(wanted: Wanted, before: Wanted) -> Wanted:
    """Return both; another W&B project than before is another run there."""
    both = replace(before, tensorboard=wanted.tensorboard or before.tensorboard)
    if wanted.wandb is not None:
        project = wanted.wandb or before.wandb or PROJECT
        same = project == before.wandb
        both = replace(both, wandb=project, wandb_id=before.wandb_id if same else None)
    return both


def described(setup: Setup) -> dict[str, Any]:
    """Return what a run is: its settings, and what else tells runs apart."""
    return {
        "system": setup.system.name,
        "data": setup.loaded.label,
        "data_sha256": setup.loaded.digest,
        "code_version": version("gm-jax"),
        **setup.settings.to_json(),
    }


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a report that runs are compared by; missing ones are left out."""
    reports = {name: results["splits"][name] for name in SPLITS}
    if results["walk_forward"]:
        reports["walk_forward"] = results["walk_forward"]
    return {
        f"{part}/{name}": float(report[name])
        for part, report in reports.items()
        for name in FIGURES
        if report.get(name) is not None
    }


def _flattened(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """Return (step, figures) of rows of metrics, `reward/tactical` for what is told by agent."""
    return [(row["env_steps"], dict(_leaves(row))) for row in rows]


def _leaves(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", float(x)) for key, x in value.items() if x is not None)
        elif value is not None:
            yield name, float(value)
