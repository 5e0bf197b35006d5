"""Memory and size of a training: how many environments fit, what is used, what a model costs.

The name is that of the PyTorch trainers' module; all of it works without a GPU too.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from gm_jax import batch_trials
from gm_jax.bench import flops
from gm_jax.mappo import learner
from gm_jax.report import figures, plots
from gm_jax.run import memory
from gm_jax.trainer.data import size_class
from gm_jax.trainer.engine import Engine
from gm_jax.trainer.trainer import MAPPOTrainer


# by platform: most environments (on a CPU more are no faster), share of what is free to take
LIMITS = {"cpu": (4_096, 0.7)}
ELSEWHERE = (65_536, 0.9)
FIRST = 64  # batch of a function to begin with

_samples: list[dict[str, Any]] = []  # of monitor_memory


def optimize_batch_size(
    trainer_or_model: MAPPOTrainer | Callable[[Any], Any],
    input_shape: Sequence[int] | None = None,
    memory_limit_bytes: int | None = None,
) -> int:
    """Return the largest number of environments that trains within the memory.

    What the compiler says of a few sizes chooses the ones to try, and what is returned has run.
    On a CPU each trial is a process of its own (seconds to compile, and no effect on this one); on
    a GPU it runs here. Call it before the training; then make a trainer with it as `batch_size`.

    Args:
        trainer_or_model: a trainer, or a function of a batch [B, *input_shape] that JAX can trace.
        input_shape: of one sample of the function's batch.
        memory_limit_bytes: what this process may come to use, on a GPU the device's memory; None
            takes 70 % of what is free on a CPU, 90 % of it on a GPU.

    Returns:
        A small factor times a power of two that goes with the trainer's `num_minibatches`: at
        most an eighth below the largest that fits. No more than 4,096 on a CPU, 65,536 elsewhere.

    Raises:
        UserError: not even the smallest fits, or no such model.
    """
    now = memory.device()
    room = None if memory_limit_bytes is None else memory_limit_bytes - now["used"]
    if isinstance(trainer_or_model, MAPPOTrainer):
        with trainer_or_model.engine.placed():
            return _environments(trainer_or_model.engine, room)
    trial = batch_trials.of_function(trainer_or_model, input_shape or ())
    most, share = LIMITS.get(jax.default_backend(), ELSEWHERE)
    room = int(share * now["free"]) if room is None else room
    return batch_trials.largest(batch_trials.sizes(most), trial, room, FIRST)


def _environments(engine: Engine, room: int | None) -> int:
    """Return the most environments that a trainer has room for, bytes; None: what is free."""
    settings = engine.settings
    platform = (engine.device or jax.devices()[0]).platform
    most, share = LIMITS.get(platform, ELSEWHERE)
    if room is None:
        room = int(share * memory.device()["free"])
    candidates = batch_trials.sizes(
        most, lambda size: size * settings.rollout_length % settings.num_minibatches == 0
    )
    bars = len(engine.setup.market.bars) if engine.setup else size_class(settings.market_bars)
    trial = batch_trials.of_training(engine.system, settings, bars, here=platform != "cpu")
    return batch_trials.largest(candidates, trial, room, settings.num_envs)


def monitor_memory() -> dict[str, Any]:
    """Return what is used, free, the limit and the peak, of device and host, bytes.

    A CPU device's figures are the host's: `used` and `peak` are this process's resident size.
    `arrays_bytes` are JAX's arrays alone. Each call is a sample of `plot_memory_usage`.
    """
    found: dict[str, Any] = {"time": time.time(), "device": jax.devices()[0].device_kind}
    for name, figures_of in (("device", memory.device()), ("host", memory.host())):
        found |= {f"{name}_{what}_bytes": figure for what, figure in figures_of.items()}
    found["arrays_bytes"] = sum(array.nbytes for array in jax.live_arrays())
    _samples.append(found)
    return found


def plot_memory_usage(save_path: str | Path | None = None) -> Figure:
    """Draw the samples of `monitor_memory` so far.

    Args:
        save_path: PNG to write.
    """
    figure = figures.canvas(9, 4.2, "memory")
    axis = figures.style(figure.subplots(), "", "seconds", "MiB")
    if not _samples:
        figures.say(axis, "no samples yet: call monitor_memory")
    else:
        seconds = np.array([x["time"] for x in _samples]) - _samples[0]["time"]
        for name in ("device_used", "device_peak", "host_used", "arrays"):
            values = [x[f"{name}_bytes"] / 2**20 for x in _samples]
            axis.plot(seconds, values, marker="o", ms=3, label=figures.readable(name))
        axis.set_ylim(bottom=0)
        figures.key(axis)
    if save_path is not None:
        plots.save(figure, Path(save_path))
    return figure


def clear_cache() -> int:
    """Give back what is not in use: compiled programs and freed memory; return the bytes freed.

    What is trained on is compiled again at its next call, in seconds from the cache on the disk.
    """
    before = memory.device()["used"]
    gc.collect()
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU library keeps what is freed
    if trim is not None:
        trim(0)
    return max(before - memory.device()["used"], 0)


def profile_model(trainer: MAPPOTrainer) -> dict[str, Any]:
    """Return the sizes of a trainer's networks and their work, counted by hand.

    Returns:
        `parameters`, of which `actor_parameters` and `critic_parameters`; `parameter_bytes`;
        `state_bytes` of everything that is trained, optimisers and environments included;
        `flops_per_forward` of a decision of the team with its values; `flops_per_env_step` of a
        step with its share of the updates, as `gm-jax bench` counts.
    """
    engine = trainer.engine
    with engine.placed():
        setup = engine.setup or batch_trials.stand_in(engine.system, engine.settings)
        state = learner.abstract_state(setup.market, setup.params, setup.config)
    nets = {"actor": state.networks.actor, "critic": state.networks.critic}
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(params)) for name, params in nets.items()
    }
    sized = state.replace(key=jax.eval_shape(jax.random.key_data, state.key))
    return {
        "parameters": sum(counts.values()),
        **{f"{name}_parameters": count for name, count in counts.items()},
        "parameter_bytes": 4 * sum(counts.values()),
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(sized)),
        "flops_per_forward": sum(2 * flops.weights(params) for params in nets.values()),
        "flops_per_env_step": flops.flops_per_env_step(setup),
    }
