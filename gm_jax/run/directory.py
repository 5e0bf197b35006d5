"""The run directory: names of its files, and writes that are whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gm_jax.errors import UserError


SCHEMA_VERSION = 1
LOCK = ".lock"
SWEEP, BEST = "sweep.json", "best"  # what makes a directory that of a sweep; its best run
PART = ".part"  # ends the name of what is not whole yet


class WriteError(UserError):
    """A file of a run cannot be written: a full disk, lost rights."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file where writing it fails.

    Raises:
        WriteError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or path).removesuffix(PART)
        raise WriteError(f"Cannot write {name}: {error.strerror or error}.") from error


class RunDirectory:
    """`exports/<YYYYMMDD-HHMMSS>-<system>/` and what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.plots = path / "plots"
        self._lock: int | None = None

    @classmethod
    def create(cls, system: str, out: Path | None) -> RunDirectory:
        """Make a new directory: `out`, or a stamped one under exports.

        Raises:
            UserError: it exists with something in it, or cannot be made.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        path = out or Path("exports") / f"{stamp}-{system}"
        number = 1
        while not _make(path, exist_ok=out is not None):
            number += 1
            path = path.with_name(f"{stamp}-{number}-{system}")
        directory = cls(path)
        directory._require_empty()
        try:
            directory.lock()
            directory._require_empty()  # nor was another run here before the lock
        except UserError:
            directory.release()
            raise
        return directory

    def _require_empty(self) -> None:
        found = {path.name for path in self.path.iterdir()} - {LOCK}
        if found:
            hint = f", or go on with it by --resume {self.path}"
            raise UserError(
                f"The run directory {self.path} is not empty; name another with --out"
                f"{hint if found & {'model_config.json', SWEEP} else ''}."
            )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            UserError: it is none.
        """
        if not (path / "model_config.json").is_file() and (path / SWEEP).is_file():
            raise UserError(
                f"{path} is a sweep, expected one run: take {path / BEST}, which it writes at its "
                f"end; one that was cut off goes on by `gm-jax sweep SYSTEM --resume {path}`."
            )
        if not (path / "model_config.json").is_file():
            raise UserError(
                f"{path} is no run directory: it has no model_config.json, which a run writes "
                "after its first checkpoint. There is nothing to go on from; start a run with "
                "`gm-jax train`."
            )
        return cls(path)

    def lock(self) -> None:
        """Hold the directory until `release` or the end of the process, kill -9 included.

        Raises:
            UserError: another process holds it.
        """
        with writing(self.path / LOCK):
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 20).decode() or "unknown"
            os.close(handle)
            raise UserError(
                f"{self.path} is in use by another run (process {holder}). Wait for its end, or "
                "stop it by Ctrl-C or SIGTERM, which saves; then try again."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                os.close(handle)
                raise
            print(
                f"warning: {self.path} lies on a file system without locks; let no second run "
                "use it",
                file=sys.stderr,
            )
        self._lock = handle
        with writing(self.path / LOCK):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())

    def release(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clean(self) -> None:
        """Remove what was left half-written; what resists is not taken for whole anyway."""
        for part in [*self.path.rglob(f"*{PART}")]:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                with suppress(OSError):
                    part.unlink()

    def config(self) -> dict[str, Any]:
        """Read model_config.json.

        Raises:
            UserError: it is broken or of another version.
        """
        file = self.path / "model_config.json"
        try:
            config: dict[str, Any] = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}.") from error
        needed = {"system": str, "settings": dict, "source": dict, "data_sha256": str}
        if not isinstance(config, dict) or not all(
            isinstance(config.get(key), kind) for key, kind in needed.items()
        ):
            raise UserError(f"{file} is not what `gm-jax train` writes; was it edited?")
        if config.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{file} has schema version {config.get('schema_version')}, this gm-jax "
                f"({version('gm-jax')}) reads {SCHEMA_VERSION}."
            )
        return config

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file atomically."""
        write_whole(self.path / name, to_json(content, indent=2) + "\n")

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a line per iteration; those that a checkpoint follows outlast a power cut."""
        with writing(self.metrics), self.metrics.open("a") as file:
            file.writelines(to_json(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def history(self) -> list[dict[str, Any]]:
        """Read the metrics of every iteration so far; a half-written last line is left out.

        Raises:
            UserError: a whole line is not JSON.
        """
        if not self.metrics.exists():
            return []
        whole = (line for line in self.metrics.read_text().splitlines(True) if line.endswith("\n"))
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise UserError(f"{self.metrics} has a line that is not JSON: {error}.") from error

    def cut_metrics(self, iteration: int) -> None:
        """Drop the lines past an iteration: the run goes on from there."""
        kept = [row for row in self.history() if row["iteration"] <= iteration]
        write_whole(self.metrics, "".join(to_json(row) + "\n" for row in kept))


@contextmanager
def begun(directory: RunDirectory) -> Iterator[None]:
    """Remove a new directory whose first files cannot be written: nothing can go on from it.

    Raises:
        UserError: instead of a WriteError.
    """
    try:
        yield
    except BaseException as error:
        directory.release()
        shutil.rmtree(directory.path, ignore_errors=True)
        if isinstance(error, WriteError):
            raise UserError(f"{error} Nothing was begun; name another folder by --out.") from error
        raise


def _make(path: Path, exist_ok: bool) -> bool:
    """Make a folder; return False where there is one that may not be used."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            return False
        raise UserError(
            f"Cannot make the run directory {path}: {error.strerror}. Name a folder that can "
            "be written with --out."
        ) from error
    return True


def write_whole(path: Path, text: str | bytes) -> None:
    """Write a file that is there whole or not at all, power cuts included.

    Raises:
        WriteError: it cannot be written.
    """
    part = path.with_name(path.name + PART)
    with writing(path):
        with part.open("wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def to_json(content: Any, indent: int | None = None) -> str:
    """Dump JSON; NaN and infinity become null, NumPy numbers plain ones."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if isinstance(x, np.ndarray):
        return _plain(x.tolist())
    if isinstance(x, np.generic):
        return _plain(x.item())
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return x
