"""Several processes as one program: the first leads, the others do on their devices what it says.

Only the leader reads and writes run directories, speaks, saves and reports. The others need the
same package and, with `--data`, the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gm_jax.errors import LostProcessError, UserError


END, GATHER = 0, -1  # commands beside a number of iterations


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Make this process one of several.

    Args:
        coordinator: HOST:PORT of the first; None finds out from Slurm, Open MPI or Kubernetes.
        processes: how many there are, with a coordinator.
        process: the number of this one, with a coordinator.

    Raises:
        UserError: no cluster is found, or the others do not answer.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {str(error).splitlines()[0]}. Under Slurm start it with srun; "
            "elsewhere say --distributed HOST:PORT --processes N --process I in each process."
        ) from error


def several() -> bool:
    """Return whether this is one of several processes."""
    return jax.process_count() > 1


def follows() -> bool:
    """Return whether another process leads."""
    return jax.process_index() > 0


def lead(command: int) -> None:
    """Give the others a command, where there are others and this process leads."""
    if several() and not follows():
        arrays(np.int32(command))


def wait() -> int:
    """Return the leader's next command: iterations to run, GATHER or END."""
    return int(arrays(np.int32(END)))


def message(content: Any = None) -> Any:
    """Return the leader's plain JSON content in every process."""
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    size = int(arrays(np.int32(len(text))))
    return json.loads(arrays(np.zeros(size, np.uint8) if follows() else text).tobytes())


def arrays(tree: Any) -> Any:
    """Return the leader's arrays in every process; what the others give says only the shapes."""
    with unbroken():
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


@contextmanager
def unbroken() -> Iterator[None]:
    """Say what has happened where something is computed together with a process that is gone.

    Raises:
        LostProcessError: instead of what JAX raises.
    """
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if not several():
            raise
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"Another process of this training is gone ({reason}).") from error


def leave() -> None:
    """Part: each process is alone again, and ends when it likes."""
    if several():
        jax.distributed.shutdown()
