"""The trials file: every setting and seed ever evaluated, beside the run directories.

The best of many trials looks good by chance alone; `significance.deflated_sharpe` charges for it
what this file counts.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from gm_jax.errors import UserError
from gm_jax.market.data_report import iso
from gm_jax.run.directory import BEST, SWEEP, to_json, writing


NAME = "trials.jsonl"
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


@dataclass(frozen=True)
class Trial:
    """One evaluation: a line of the file."""

    time: str  # ISO 8601, UTC
    run: str  # name of the run directory; of one in a sweep, after that of the sweep
    system: str
    data_sha256: str
    settings_sha256: str  # see `settings_digest`
    sharpe: Mapping[str, float | None]  # by split, per session: not annualised


def beside(run: Path) -> Path:
    """Return the trials file that a run directory belongs to: that of its sweep, if it has one."""
    path = _absolute(run)
    within = path.name == BEST and (path.parent / SWEEP).exists()
    return (path.parent.parent if within else path.parent) / NAME


def _absolute(run: Path) -> Path:
    """Return a path whose name and parent are the run's, from whatever folder it is named."""
    return Path(os.path.abspath(run))  # without following links


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all settings, the seed among them; the order of keys is no matter.

    Args:
        settings: plain JSON types, see `Settings.to_json`.
    """
    canonical = json.dumps(json.loads(to_json(settings)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def trial(
    run: Path,
    system: str,
    data_sha256: str,
    settings: Mapping[str, Any],
    sharpe: Mapping[str, float | None],
) -> Trial:
    """Return the trial that a run is, as of now.

    Args:
        run: its directory.
        system: its system's name.
        data_sha256: of its bars.
        settings: all of them, see `Settings.to_json`.
        sharpe: Sharpe ratio by split, per session, None where it does not exist.
    """
    now = iso(time.time_ns())
    name = _absolute(run).relative_to(beside(run).parent).as_posix()
    return Trial(now, name, system, data_sha256, settings_digest(settings), sharpe)


def record(path: Path, trial: Trial) -> None:
    """Append a trial as a whole line, whoever else appends.

    Raises:
        WriteError: the file cannot be written.
    """
    line = to_json(asdict(trial)).encode() + b"\n"
    with writing(path), path.open("a+b") as file:
        _wait_for(file)  # the lock ends with the file
        file.write(_mended(file) + line)
        file.flush()
        os.fsync(file.fileno())


def _wait_for(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _mended(file: BinaryIO) -> bytes:
    """Cut off a last line that a power cut left half-written; return what a whole one lacks."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return b""
    if _parsed(content[whole:]) is not None:
        return b"\n"
    file.truncate(whole)
    return b""


def known(path: Path, data_sha256: str, system: str) -> list[Trial]:
    """Return the trials on the same data, the newest of each setting and seed.

    A half-written last line is left out; without a file there are none.

    Args:
        path: the file.
        data_sha256: of the bars.
        system: its name.

    Raises:
        UserError: the file cannot be read, or a whole line is no trial.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    newest: dict[str, Trial] = {}
    for number, line in enumerate(lines, 1):
        found = _parsed(line)
        if found is None and number < len(lines):
            keys = ", ".join(field.name for field in fields(Trial))
            raise UserError(
                f"{path}, line {number} is no trial: expected a JSON object with {keys}. Mend "
                "or remove the line."
            )
        if found and (found.data_sha256, found.system) == (data_sha256, system):
            before = newest.pop(found.settings_sha256, None)
            sharpe = {**(before.sharpe if before else {}), **found.sharpe}  # of other splits too
            newest[found.settings_sha256] = replace(found, sharpe=sharpe)
    return list(newest.values())


def sharpes(trials: Sequence[Trial], split: str) -> list[float | None]:
    """Return every trial's Sharpe ratio on one split, per session; None where it has none."""
    return [trial.sharpe.get(split) for trial in trials]


def _parsed(line: bytes) -> Trial | None:
    """Return the trial in a line, None if it is none."""
    try:
        content = json.loads(line.decode())
    except ValueError:  # of the encoding too
        return None
    names = [field.name for field in fields(Trial)]
    if not isinstance(content, dict) or not set(names) <= set(content):
        return None
    found = Trial(**{name: content[name] for name in names})
    return found if _is_well_typed(found) else None


def _is_well_typed(found: Trial) -> bool:
    *texts, sharpe = asdict(found).values()
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(sharpe, dict)
        and all(x is None or _is_number(x) for x in sharpe.values())
    )


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)
