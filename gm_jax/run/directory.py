"""The run directory: names of its files, and writes that are whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gm_jax.errors import UserError


SCHEMA_VERSION = 1


class RunDirectory:
    """`exports/<YYYYMMDD-HHMMSS>-<system>/` and what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.plots = path / "plots"

    @classmethod
    def create(cls, system: str, out: Path | None) -> RunDirectory:
        """Make a new directory: `out`, or a stamped one under exports.

        Raises:
            UserError: it exists with something in it, or cannot be made.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        path = out or Path("exports") / f"{stamp}-{system}"
        number = 1
        while out is None and path.exists():
            number += 1
            path = path.with_name(f"{stamp}-{number}-{system}")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot make the run directory {path}: {error.strerror}. Name a folder that can "
                "be written with --out."
            ) from error
        if any(path.iterdir()):
            raise UserError(
                f"The run directory {path} is not empty; name another with --out, or go on with "
                f"it by --resume {path}."
            )
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            UserError: it is none.
        """
        if not (path / "model_config.json").is_file():
            raise UserError(f"{path} is no run directory: it has no model_config.json.")
        return cls(path)

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
        target = self.path / name
        part = target.with_suffix(".part")
        part.write_text(to_json(content, indent=2) + "\n")
        os.replace(part, target)

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a line per iteration."""
        with self.metrics.open("a") as file:
            file.writelines(to_json(row) + "\n" for row in rows)
            file.flush()

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
        part = self.metrics.with_suffix(".part")
        part.write_text("".join(to_json(row) + "\n" for row in kept))
        os.replace(part, self.metrics)


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
