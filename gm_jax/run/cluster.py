"""Several processes as one program: the first leads, the others do on their devices what it says.

Only the leader reads and writes run directories, speaks, saves and reports. The others need the
same package and, with `--data`, the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gm_jax.errors import LostProcessError, UserError
from gm_jax.run import memory


END, GATHER, BEGIN = 0, -1, -2  # commands beside a number of iterations

Made = TypeVar("Made")


@dataclass
class _Meeting:
    """How far this process has come with the others."""

    told: bool = False  # what is to be trained
    left: bool = False


_meeting = _Meeting()


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Make this process one of several.

    Args:
        coordinator: HOST:PORT of the first; None finds out from Slurm, Open MPI or Kubernetes.
        processes: how many there are, with a coordinator.
        process: the number of this one, with a coordinator.

    Raises:
        UserError: no cluster is found, or the others do not answer.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {str(error).splitlines()[0]}. Under Slurm start it with srun; "
            "elsewhere say --distributed HOST:PORT --processes N --process I in each process."
        ) from error


def several() -> bool:
    """Return whether this is one of several processes that train together."""
    return jax.process_count() > 1 and not _meeting.left


def follows() -> bool:
    """Return whether another process leads."""
    return jax.process_index() > 0


@contextmanager
def leading() -> Iterator[None]:
    """Let the others end where this process, which leads, has nothing more for them."""
    try:
        yield
    except (LostProcessError, KeyboardInterrupt):  # nothing can be said to them now
        raise
    except BaseException:
        _dismiss()
        raise
    _dismiss()


def _dismiss() -> None:
    if several():
        if _meeting.told:
            lead(END)
        else:
            message(None)
        leave()


def agreed(make: Callable[[], Made]) -> Made:
    """Return what `make` does here, if every process can do it.

    Raises:
        UserError: this process cannot, or another.
        LostProcessError: another is gone.
    """
    made, problem = None, None
    try:
        made = make()
    except UserError as error:
        problem = error
    if several():
        with unbroken():
            fine = multihost_utils.process_allgather(np.int32(problem is None))
        if not fine.all():
            leave()
            problem = problem or UserError("Another process cannot take part, it says why.")
    if problem or made is None:
        raise problem or UserError("Nothing was made.")
    return made


def lead(command: int) -> None:
    """Give the others a command, where there are others and this process leads."""
    if several() and not follows():
        arrays(np.int32(command))


def wait() -> int:
    """Return the leader's next command: iterations to run, or one of the others."""
    return int(arrays(np.int32(END)))


def message(content: Any = None) -> Any:
    """Return the leader's plain JSON content in every process: what is to be trained."""
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(arrays(np.int32(len(text))))
    _meeting.told = True
    return json.loads(arrays(np.zeros(size, np.uint8) if follows() else text).tobytes())


def arrays(tree: Any) -> Any:
    """Return the leader's arrays in every process; what the others give says only the shapes."""
    with unbroken():
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


@contextmanager
def unbroken() -> Iterator[None]:
    """Say what has happened where this process or another cannot compute its part.

    Raises:
        LostProcessError: instead of what JAX raises.
    """
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if not several():
            raise
        if memory.ran_out(error):
            raise LostProcessError(
                "This process's device has too little memory for its share: train with fewer "
                "environments (--set num_envs=…)."
            ) from error
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"Another process of this training is gone ({reason}).") from error


def leave() -> None:
    """Part, all at the same time: each process ends when it likes."""
    if several():
        _meeting.left = True
        jax.distributed.shutdown()
