"""A plain PyTorch training loop of the same team, in a process of its own, measured in turn."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

import gm_jax
from gm_jax import doctor
from gm_jax.errors import UserError
from gm_jax.run.setup import Setup


SCRIPT = Path(gm_jax.__file__).parents[1] / "benchmarks" / "pytorch_mappo.py"
READY = "ready"  # what the loop says once it can be measured


@contextmanager
def pytorch(setup: Setup) -> Iterator[Callable[[float], float]]:
    """Run the loop of `benchmarks/pytorch_mappo.py`, which waits while others are measured.

    It reads the sizes from its first line of input, then seconds from each line, and answers with
    environment steps a second.

    Args:
        setup: whose sizes it has.

    Returns:
        Context of a function that measures for at least so many seconds.

    Raises:
        UserError: no PyTorch, no such file, no GPU that PyTorch sees.
    """
    _require()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the bench, which then ends the loop
    )
    try:
        answer = _ask(process, json.dumps(sizes(setup)))
        if answer != READY:
            raise UserError(f"--compare: {answer}")
        yield lambda seconds: float(_ask(process, str(seconds)))
    finally:
        process.kill()
        process.communicate()


def _require() -> None:
    """Refuse a comparison without its other side."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "--compare measures a PyTorch loop, and PyTorch is not installed; expected torch 2.6 "
            "or newer: pip install torch."
        )
    if not SCRIPT.exists():
        raise UserError(
            f"--compare runs {SCRIPT.parent.name}/{SCRIPT.name} of the repository, which is not "
            "beside this installation; clone it and install with pip install -e ."
        )


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """Send a line and return the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has ended: there is no answer then
        process.stdin.write(line + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"the PyTorch loop ended with status {process.wait()}")
    return answer.strip()


def sizes(setup: Setup) -> dict[str, Any]:
    """Return what shapes the loop's work."""
    settings, config = setup.settings, setup.config
    same = ("num_envs", "rollout_length", "num_minibatches", "num_epochs", "hidden_sizes")
    learning = ("lr_actor", "lr_critic", "gamma", "gae_lambda", "clip_eps", "ent_coef")
    account = ("max_contracts", "lots_small", "lots_large", "point_value_usd", "commission_usd")
    return {
        **{name: getattr(config, name) for name in (*same, "layer_norm", "central", "precision")},
        **{name: getattr(settings, name) for name in (*learning, "max_grad_norm", *account)},
        "episode_length": setup.episode_length,
        "features": len(settings.features),
        "actions": len(setup.system.actions),
        "start_equity_usd": settings.start_equity_usd,
        "threads": doctor.cpu_count(),
        "gpu": jax.default_backend() == "gpu",
    }
