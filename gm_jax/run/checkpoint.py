"""Checkpoints: the whole training state, written by Orbax, whole or not at all.

`checkpoints/<iteration>/` holds `state/` (Orbax), `run.json` (what the state belongs to) and
`SHA256SUMS` (of every file, as `sha256sum -c` reads it).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.sharding import from_host, to_host
from gm_jax.mappo.types import TrainState
from gm_jax.run.directory import PART, SCHEMA_VERSION, WriteError, to_json, write_whole
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup
from gm_jax.settings import ANALYSES


KEPT = 2  # the newest and the one before it
CHANGEABLE = ("num_episodes", *ANALYSES)  # settings that a run may be resumed with anew
STATE, BELONGS_TO, SUMS = "state", "run.json", "SHA256SUMS"


class Checkpoints:
    """The folder `checkpoints/` of a run, or one of `members` states stacked."""

    def __init__(self, directory: Path, members: int | None = None) -> None:
        self.directory = directory
        self.members = members
        self.newest: int | None = None  # iteration last saved or restored
        # one process alone reads and writes, whether it leads others or not
        alone = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()})
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        self._orbax = ocp.Checkpointer(handler, multiprocessing_options=alone)

    def save(self, setup: Setup, state: TrainState) -> None:
        """Write the state; a half-written checkpoint is never taken for a whole one.

        Raises:
            WriteError: it cannot be written; what was there before is.
        """
        iteration = int(state.iteration)
        if iteration == self.newest:
            return
        whole = self.directory / str(iteration)
        part = whole.with_suffix(PART)
        try:
            with _quiet():
                target = part.absolute() / STATE
                self._orbax.save(target, args=ocp.args.StandardSave(to_host(state)))
            write_whole(part / BELONGS_TO, to_json(belongs_to(setup), indent=2) + "\n")
            write_whole(part / SUMS, _sums(part))
            os.replace(part, whole)
            self.newest = iteration
            for old in self._iterations()[KEPT:]:
                self._remove(old)
        except Exception as error:  # Orbax passes a full disk on as errors of many types
            raise WriteError(f"Cannot write the checkpoint {whole}: {_reason(error)}.") from error

    def restore(self, setup: Setup) -> TrainState:
        """Return the newest whole state of a run of this setup.

        Raises:
            UserError: there is none, or it belongs to another version or other settings.
        """
        if not self.directory.is_dir():
            raise UserError(f"The checkpoints of the run are gone: no folder {self.directory}.")
        damaged: list[int] = []
        # listed anew each time: a run under way removes the old while this one reads
        while left := [n for n in self._iterations() if n not in damaged]:
            path = self.directory / str(left[0])
            try:
                _verify(path)
            except (OSError, ValueError) as error:
                damaged.append(left[0])
                if path.exists():
                    say(f"warning: the checkpoint {path} is damaged and left out: {error}")
                continue
            try:
                state = self._read(path, setup)
            except (OSError, ValueError, KeyError, TypeError) as error:
                damaged.append(left[0])
                if path.exists():
                    raise UserError(
                        f"The checkpoint {path} does not fit this gm-jax "
                        f"({str(error).splitlines()[0]}); was it written by another version?"
                    ) from error
                continue
            self.newest = left[0]
            return state
        raise UserError(
            f"No whole checkpoint in {self.directory}"
            + (f" ({', '.join(map(str, damaged))} damaged)" if damaged else "")
            + ": there is nothing to go on from; start the run again with `gm-jax train`."
        )

    def any(self) -> bool:
        """Return whether a state was ever saved here."""
        return self.directory.is_dir() and bool(self._iterations())

    def cut(self, iteration: int) -> None:
        """Drop the checkpoints past an iteration, which are damaged: the run goes on from there."""
        for newer in self._iterations():
            if newer > iteration:
                self._remove(newer)

    def close(self) -> None:
        """Release what Orbax holds."""
        self._orbax.close()

    def _iterations(self) -> list[int]:
        """Return the iterations of the finished checkpoints, newest first."""
        names = (path.name for path in self.directory.iterdir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _remove(self, iteration: int) -> None:
        """Remove a checkpoint; one that is half removed is never taken for a whole one."""
        part = (self.directory / str(iteration)).with_suffix(PART)
        os.replace(self.directory / str(iteration), part)
        shutil.rmtree(part)

    def _read(self, path: Path, setup: Setup) -> TrainState:
        _require_same(path, belongs_to(setup))
        shapes = learner.abstract_state(setup.market, setup.params, setup.config)
        shapes = shapes.replace(key=jax.eval_shape(jax.random.key_data, shapes.key))
        shape = () if self.members is None else (self.members,)
        template = jax.tree.map(lambda x: np.empty((*shape, *x.shape), x.dtype), shapes)
        counters = {name: np.empty((), np.int32) for name in ("update", "iteration")}
        template = template.replace(**counters)  # members share them
        with _quiet():
            source = path.absolute() / STATE
            state = self._orbax.restore(source, args=ocp.args.StandardRestore(template))
        for (name, wanted), found in zip(
            jax.tree.leaves_with_path(template), jax.tree.leaves(state), strict=True
        ):
            if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(
                    f"{jax.tree_util.keystr(name)} is {found.dtype}{found.shape}, "
                    f"expected {wanted.dtype}{wanted.shape}"
                )
        return from_host(state)


def belongs_to(setup: Setup) -> dict[str, Any]:
    """Return what must be the same for a state to be of use."""
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": version("gm-jax"),
        "system": setup.system.name,
        "data_sha256": setup.loaded.digest,
        "mandate_sha256": setup.loaded.mandate_digest,
        "settings": setup.settings.to_json(),
    }


def _require_same(path: Path, wanted: dict[str, Any]) -> None:
    """Refuse the state of another version or of other settings; `CHANGEABLE` may differ."""
    found = json.loads((path / BELONGS_TO).read_text())
    versions = [f"{x['code_version']} (schema {x['schema_version']})" for x in (found, wanted)]
    if versions[0] != versions[1]:
        raise UserError(
            f"The checkpoint {path} was written by gm-jax {versions[0]}, this is {versions[1]}: "
            "install that version to go on with it, or start a new run."
        )
    before, now = ({**x, **x["settings"], "settings": None} for x in (found, wanted))
    other = [k for k in {**now, **before} if before.get(k) != now.get(k) and k not in CHANGEABLE]
    if other:
        changes = "; ".join(f"{k} {before.get(k)!r}, now {now.get(k)!r}" for k in other)
        raise UserError(
            f"The checkpoint {path} belongs to other settings than model_config.json has: "
            f"{changes}. Put the old ones back there, or start a new run with the new ones."
        )


def _sums(path: Path) -> str:
    """Return a line per file of a checkpoint: SHA-256 and name."""
    lines = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != SUMS:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"{digest}  {file.relative_to(path)}\n")
    return "".join(lines)


def _verify(path: Path) -> None:
    """Raise OSError or ValueError unless every file of a checkpoint is what was written."""
    written, found = (path / SUMS).read_text(), _sums(path)
    other = sorted({*written.splitlines()} ^ {*found.splitlines()})
    if other:
        raise ValueError(f"{other[0].rpartition('  ')[2]} is not what was written")


def _reason(error: Exception) -> str:
    """Return what the system said: TensorStore has it in its text alone."""
    system = error if isinstance(error, OSError) else error.__cause__
    if isinstance(system, OSError) and system.strerror:
        return system.strerror
    code = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {error}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's and TensorStore's own account of an error off the screen: it is raised too."""
    log = logging.getLogger("absl")
    level, report = log.level, sys.unraisablehook

    def unless_closed(event: Any) -> None:
        # TensorStore answers late to an event loop that Orbax closed at the first error
        if str(event.exc_value) != "Event loop is closed":
            report(event)

    log.setLevel(logging.CRITICAL)
    sys.unraisablehook = unless_closed
    try:
        yield
    except BaseException:
        log.setLevel(level)
        raise  # the answers may come later still: the hook stays
    log.setLevel(level)
    sys.unraisablehook = report
