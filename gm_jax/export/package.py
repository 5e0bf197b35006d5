"""Write an export package: all of it or, until the last moment, the one that was there before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gm_jax.deploy.feed import Feed
from gm_jax.env.team import rule_signals
from gm_jax.errors import UserError
from gm_jax.export import bundle, readme
from gm_jax.mappo import learner
from gm_jax.mappo.types import TrainState
from gm_jax.run import record
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import PART, RunDirectory, to_json, writing
from gm_jax.run.results import stored_iterations
from gm_jax.run.setup import Setup


if TYPE_CHECKING:
    from gm_jax.export.agents import Trained

MANIFEST, STATE = "manifest.json", "feature_state.json"
STAGED = ".new"  # as in `deploy.package`: in force once the manifest names its content
SCHEMA_VERSION = 1
# of the run, and copied with the package: what it needs, what it is worth, pictures
NEEDED, TOLD = "model_config.json", ("training_statistics.json", "validation_results.json")


def available() -> bool:
    """Return whether PyTorch is installed; it is not imported."""
    return find_spec("torch") is not None


def export_run(
    run: Path, out: Path | None = None, layout: str = "gm", *, onnx: bool, safetensors: bool
) -> dict[str, Any]:
    """Export a run's networks; return the summary of `export --json`.

    Args:
        run: its directory.
        out: folder of the package; the run directory itself by default.
        layout: `gm` or `grandmodel`.
        onnx: write ONNX files as well.
        safetensors: write safetensors files as well.

    Raises:
        UserError: no run, no PyTorch, a folder with other things in it, or files that cannot be
            written.
    """
    require_torch()
    directory = RunDirectory.open(run)
    if out and not _same(out, run):
        _require_own(out)
    setup, _ = record.reopen(directory)
    checkpoints = Checkpoints(directory.checkpoints)
    state = checkpoints.restore(setup)
    checkpoints.close()
    return export(directory, setup, state, out, layout, onnx=onnx, safetensors=safetensors)


def export(
    directory: RunDirectory,
    setup: Setup,
    state: TrainState,
    out: Path | None = None,
    layout: str = "gm",
    *,
    onnx: bool = False,
    safetensors: bool = False,
) -> dict[str, Any]:
    """Write the package of a run, see `export_run`."""
    target = out or directory.path
    # a report of before a resume is of other networks
    reported = stored_iterations(directory) == int(state.iteration)
    files = {
        **_networks(directory, setup, state, layout, onnx, safetensors),
        STATE: _json(feature_state(setup)),
        "deploy_model.py": bundle.assemble(setup.system.name).encode(),
        NEEDED: (directory.path / NEEDED).read_bytes(),
        "README.md": readme.text(directory, setup, layout, reported).encode(),
    }
    if reported and not _same(target, directory.path):
        files |= dict(_told(directory.path))
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        publish(target, files, {"system": setup.system.name, "layout": layout})
    return {
        "package": str(target),
        "system": setup.system.name,
        "layout": layout,
        "best_iteration": int(state.best.iteration),
        "files": sorted([*files, MANIFEST]),
    }


def require_torch() -> None:
    """Refuse to export without PyTorch."""
    if not available():
        raise UserError(
            "PyTorch is not installed, and the exporter needs it: "
            "pip install torch, then try again."
        )


def _same(one: Path, other: Path) -> bool:
    """Return whether two paths are one folder, however spelled."""
    return one.resolve() == other.resolve()


def _require_own(folder: Path) -> None:
    """Refuse a folder where a package might replace what is of none.

    Raises:
        UserError: it is a run directory, or has files without a package's manifest.
    """
    if (folder / NEEDED).exists() and RunDirectory(folder).checkpoints.exists():
        raise UserError(
            f"{folder} is the directory of another run, expected a folder for the package alone. "
            f"Name another with --out; that run is exported by `gm-jax export {folder}`."
        )
    found = None if _listed(folder) else next(_foreign(folder), None)
    if found is not None:
        raise UserError(
            f"{folder} holds {found}, but no {MANIFEST} of an earlier package; expected one, or an "
            "empty folder. Name another with --out."
        )


def _foreign(folder: Path) -> Iterator[Path]:
    """Yield files that are neither hidden nor left by an export killed before its manifest."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        left = path.suffix == STAGED or str(name) == MANIFEST + PART
        if not (path.is_dir() or hidden or left):
            yield name


def _networks(
    directory: RunDirectory,
    setup: Setup,
    state: TrainState,
    layout: str,
    onnx: bool,
    safetensors: bool,
) -> dict[str, bytes]:
    # PyTorch takes seconds to import
    from gm_jax.export import agents, checkpoints, formats

    run = trained(setup, state, directory.history())
    files = checkpoints.files(layout, run)
    best = agents.team(run, learner.chosen(state))
    if onnx:
        files |= formats.onnx_files(best)
    if safetensors:
        files |= formats.safetensors_files(best)
    return files


def trained(setup: Setup, state: TrainState, history: Sequence[Mapping[str, Any]]) -> Trained:
    """Return a run as far as it is exported.

    Args:
        setup: of the run.
        state: of the training.
        history: rows of metrics.jsonl.
    """
    from gm_jax.export.agents import Trained

    first, end = setup.split.train
    return Trained(
        config=setup.config,
        settings=setup.settings,
        scaler=setup.scaler,
        state=state,
        history=history,
        raw_features=np.asarray(setup.market.features)[first:end],
    )


def feature_state(setup: Setup) -> dict[str, Any]:
    """Return the features' memory after the last bar of the run."""
    system, settings = setup.system, setup.settings
    signals = rule_signals(system.team, system.minutes)
    feed = Feed(settings.features, signals, system.minutes, setup.warmup, settings)
    feed.skip(setup.loaded.bars)
    return feed.state()


def _told(run: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what the run says of itself."""
    for path in (*(run / name for name in TOLD), *sorted(run.glob("plots/*.png"))):
        if path.exists():
            yield str(path.relative_to(run)), path.read_bytes()


def _json(content: Mapping[str, Any]) -> bytes:
    return (to_json(content) + "\n").encode()


def publish(target: Path, files: Mapping[str, bytes], about: Mapping[str, Any]) -> None:
    """Put files in force together, by one rename of the manifest.

    Every file is written beside its place and made durable; then the manifest that names their
    content replaces the old one, from when on readers take them; then they move into their places.
    Killed before that rename this leaves the old package, killed after it the new one.

    Args:
        target: folder.
        files: content by name.
        about: what the manifest says beside the files' sums.
    """
    before = _listed(target)
    for name, content in files.items():
        _write(target / (name + STAGED), content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    own = {name for name, _ in _told(target)} if (target / "checkpoints").exists() else set()
    gone = before - set(files) - own  # a run's own report is no part of its package
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "code_version": version("gm-jax"),
        **about,
        "files": sums,
        "removed": sorted(gone),  # killed before they are, this names them to the next export
    }
    _write(target / (MANIFEST + PART), (to_json(manifest, indent=2) + "\n").encode())
    os.replace(target / (MANIFEST + PART), target / MANIFEST)
    for name in files:
        os.replace(target / (name + STAGED), target / name)
    for name in gone:
        (target / name).unlink(missing_ok=True)


def _listed(target: Path) -> set[str]:
    """Return the files of the package that is there, or was before it."""
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        return {*manifest["files"], *manifest["removed"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # none, another program's or unreadable: nothing of it is removed


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
