"""The two trackers: TensorBoard's event files, and Weights & Biases."""

from __future__ import annotations

import json
import netrc
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from gm_jax.run.progress import say


ITERATION = "iteration"  # the tag that every row has
PATIENCE = {
    "init_timeout": 20.0,
    "finish_timeout": 60.0,
}  # seconds that W&B may wait for its server
_HOSTS = ("wandb.ai", "coreweave.com")  # where W&B logs in unless WANDB_BASE_URL says otherwise
_HEAD, _TAIL = 12, 4  # bytes of a record around its event: length and two checksums


class Tracker(Protocol):
    """Is told of a run; any method may raise, see `tracking.Trackers`."""

    name: str

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an iteration."""

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """Take what the run came to."""

    def flush(self) -> None:
        """Let others see what was taken."""

    def close(self) -> None:
        """End."""


class TensorBoard:
    """Writes an event file of its own into the folder, beside those of earlier starts.

    Events are written at once: tensorboardX's own SummaryWriter hands them to a thread, and waits
    for ever on that where the disk is full.

    Args:
        folder: of the event files.
        config: what the run is, for the text and hparams pages.
        aims: tags of the figures that `report` will be given.
        rows: (step, figures) of the iterations done; those that the folder lacks are written.
        step: environment steps done.
    """

    name = "TensorBoard"

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        aims: Sequence[str],
        rows: Sequence[tuple[int, Mapping[str, float]]],
        step: int,
    ) -> None:
        event = import_module("tensorboardX.proto.event_pb2")
        self._summary = import_module("tensorboardX.summary")
        self._value = import_module("tensorboardX.proto.summary_pb2").Summary
        self._event, log = event.Event, event.SessionLog
        folder.mkdir(exist_ok=True)
        files = sorted(folder.glob("events.out.tfevents.*"))
        self._told = {tag: at for file in files for tag, at in self._last(file)}
        # TensorBoard reads the files of a folder in the order of their names
        name = folder / f"events.out.tfevents.{int(time.time()):010d}.{len(files):04d}"
        self._file = import_module("tensorboardX.record_writer").RecordWriter(str(name))
        self._write(file_version="brain.Event:2")
        if files:  # what came after the checkpoint is played again
            self._write(step=step + 1, session_log=log(status=log.START))
        else:
            plain = {k: v if _is_plain(v) else json.dumps(v) for k, v in config.items()}
            hparams = self._summary.hparams(plain, dict.fromkeys(aims))
            for page in hparams[:2]:  # the third says that the run has ended
                self._write(summary=page)
        table = "\n".join(["|setting|value|", "|-|-|", *(f"|{k}|{v}|" for k, v in config.items())])
        self._write(step=step, summary=self._summary.text("settings", table))
        for at, figures in rows:
            if at > self._told.get(ITERATION, 0):
                self.log(at, figures)
        self.flush()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write an event with a value per figure."""
        values = [self._value.Value(tag=k, simple_value=v) for k, v in figures.items()]
        self._write(step=step, summary=self._value(value=values))

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures that the folder does not have of this step."""
        self.log(step, {k: v for k, v in figures.items() if self._told.get(k) != step})

    def flush(self) -> None:
        """Put what was written on the disk."""
        with self._closed_on_error():
            self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, step: int = 0, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        with self._closed_on_error():
            self._file.write(event.SerializeToString())

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with suppress(OSError):  # closing tries to write once more
                self._file.close()
            raise

    def _last(self, file: Path) -> Iterator[tuple[str, int]]:
        """Yield (tag, step) of the figures in an event file; a torn last event is left out."""
        data, at = file.read_bytes(), 0
        while at + _HEAD <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            body = data[at + _HEAD : at + _HEAD + length]
            if len(body) < length:
                return
            event = self._event.FromString(body)
            yield from ((value.tag, event.step) for value in event.summary.value)
            at += _HEAD + length + _TAIL


class WandB:
    """Logs to a W&B run; its files lie in `wandb/` of the run directory.

    `WANDB_MODE` decides whether it is online; without it, no API key means offline. A server that
    does not answer means offline too.

    Args:
        folder: the run directory.
        project: of W&B.
        identity: of the W&B run; one that is known there goes on.
        config: what the run is.
        rows: (step, figures) of iterations done that this W&B run was never told.
    """

    name = "Weights & Biases"

    def __init__(
        self,
        folder: Path,
        project: str,
        identity: str,
        config: Mapping[str, Any],
        rows: Sequence[tuple[int, Mapping[str, float]]],
    ) -> None:
        wandb = import_module("wandb")
        known = getattr(getattr(wandb, "Settings", None), "model_fields", ())
        options: dict[str, Any] = {
            "project": project,
            "id": identity,
            "resume": "allow",
            "name": folder.resolve().name,
            "dir": str(folder),
            "config": dict(config),
            "settings": {name: value for name, value in PATIENCE.items() if name in known},
        }
        mode = os.environ.get("WANDB_MODE") or (None if _has_key() else "offline")
        with _standard_output_kept():
            try:
                self._run = wandb.init(**options, mode=mode)
            except Exception as error:  # W&B has many for a server that cannot be reached
                if mode in ("offline", "disabled"):
                    raise
                say(f"warning: W&B does not start online, it logs offline: {first_line(error)}")
                wandb.teardown()  # or the identity stays in use
                self._run = wandb.init(**options, mode="offline")
        for step, figures in rows:
            self.log(step, figures)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures; W&B leaves out steps that it has."""
        self._run.log(dict(figures), step=step)

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """Put the figures into the run's summary."""
        del step
        self._run.summary.update(dict(figures))

    def flush(self) -> None:
        """Do nothing: W&B sends by itself."""

    def close(self) -> None:
        """End; online this waits for what is not sent yet, as long as PATIENCE."""
        self._run.finish()


def first_line(error: BaseException) -> str:
    """Return what an error says, in a line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _is_plain(x: Any) -> bool:
    return x is None or isinstance(x, str | bool | int | float)


def _has_key() -> bool:
    """Return whether W&B would find a key by itself; asked otherwise, it would wait for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or _HOSTS[0]
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files if name):
        try:
            hosts = netrc.netrc(file).hosts
        except (OSError, netrc.NetrcParseError):
            continue  # W&B cannot read it either
        if any(host.partition(":")[0].endswith((*_HOSTS, own)) for host in hosts):
            return True
    return False


@contextmanager
def _standard_output_kept() -> Iterator[None]:
    """Let the program that W&B starts print to standard error: the output may be JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
