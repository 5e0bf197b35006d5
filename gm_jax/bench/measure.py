"""Speed of the program on this machine, as a share of what its matrix products could reach."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gm_jax.bench import programs
from gm_jax.bench.flops import flops_per_env_step
from gm_jax.bench.latency import decision_latency
from gm_jax.bench.peer import pytorch
from gm_jax.bench.programs import Training
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.run.progress import memory_bytes
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.settings import Settings
from gm_jax.systems import System


REPEATS = 5  # of every part in turn, since machines drift
ENDLESS = 2.0**30  # updates: past the planned ones every iteration would validate

Part = Callable[[float], float]  # measures for so many seconds, returns units a second
Rates = Mapping[str, list[float]]  # of every part, a figure a repeat


def bench(
    system: System,
    settings: Settings,
    seconds: float,
    compare: bool = False,
    memory: bool = False,
    decision: bool = False,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Measure training, environment alone and the matmul ceiling in the same run.

    Args:
        system: whose team and networks.
        settings: sizes and precision.
        seconds: about how long to measure, after compiling.
        compare: measure the PyTorch loop of `benchmarks/` in turn with the others.
        memory: compile for fewer and more environments too.
        decision: time whole decisions of the exported model too, on one thread.
        repeats: of every part.

    Returns:
        The figures of `bench --json`: medians, and what is measured every repeat with its least
        and most as `<name>_spread`.

    Raises:
        UserError: nothing to compare with, or no PyTorch to export for.
    """
    setup = endless(system, settings)
    if decision:
        package.require_torch()  # before anything is measured and lost
    with pytorch(setup) if compare else nullcontext() as peer:
        training = programs.compile_training(setup)
        parts = _parts(setup, training)
        if peer is not None:
            parts["pytorch"] = peer
        rates = alternate(parts, repeats, seconds / (len(parts) * repeats))
    result = _figures(setup, training, rates)
    if decision:  # last: exporting would count in the peak memory
        result |= decision_latency(setup)
    if memory:
        sizes = programs.memory_by_num_envs(setup) | {str(settings.num_envs): training.memory}
        result["memory_by_num_envs"] = dict(sorted(sizes.items(), key=lambda x: int(x[0])))
    return result


def endless(system: System, settings: Settings) -> Setup:
    """Prepare a run whose plan has no end, and that does not validate."""
    setup = prepare(system, settings, load(Source(market="planted"), settings, system.minutes))
    never = jnp.iinfo(jnp.int32).max
    hyper = setup.hyper.replace(num_updates=jnp.float32(ENDLESS), validate_every=jnp.int32(never))
    return dataclasses.replace(setup, hyper=hyper)


def alternate(parts: Mapping[str, Part], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Measure every part in turn, several times, each for about so many seconds."""
    for part in parts.values():
        part(0)  # what is slow at first is not counted
    found: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            found[name].append(part(seconds))
    return found


def _parts(setup: Setup, training: Training) -> dict[str, Part]:
    """Return what is measured: FLOPs of products, and environment steps twice."""
    arguments = {"market": setup.market, "params": setup.params, "config": setup.config}
    key = jax.random.key(setup.settings.seed)
    state = learner.init_state(key, **arguments)

    def train() -> Any:
        nonlocal state
        state = training.iterate(state)
        return state

    products, flops = programs.ceiling(setup.settings)
    env = partial(programs.env_only, key, **arguments)
    num_envs = setup.config.num_envs
    return {
        "ceiling": partial(_rate, products, flops),
        "env": partial(_rate, env, num_envs * programs.ENV_STEPS),
        "train": partial(_rate, train, num_envs * setup.episode_length),
    }


def _rate(call: Callable[[], Any], units: int, seconds: float) -> float:
    """Return units a second of a call that does so many."""
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        jax.block_until_ready(call())
        count += 1
    return count * units / (time.perf_counter() - began)


def _figures(setup: Setup, training: Training, rates: Rates) -> dict[str, Any]:
    flops, settings = flops_per_env_step(setup), setup.settings
    iteration = settings.num_envs * setup.episode_length
    used = [flops * rate for rate in rates["train"]]
    figures: dict[str, Any] = {
        "system": setup.system.name,
        **_spread("env_steps_per_second", rates["train"]),
        **_spread("env_only_steps_per_second", rates["env"]),
        "compile_seconds": training.compile_seconds,
        "warm_start_seconds": training.warm_seconds,
        "flops_per_env_step": flops,
        "compiler_flops_per_env_step": training.work.flops / iteration,
        **_spread("model_flops_per_second", used),
        **_spread("matmul_ceiling_flops_per_second", rates["ceiling"]),
        **_spread("model_flops_utilisation", ratios(used, rates["ceiling"])),
        "peak_memory_bytes": memory_bytes(),
        "program_memory_bytes": training.memory,
        "num_envs": settings.num_envs,
        "hidden_sizes": list(settings.hidden_sizes),
        "precision": settings.precision,
        "device": jax.devices()[0].device_kind,
    }
    if "pytorch" in rates:
        figures |= _spread("pytorch_env_steps_per_second", rates["pytorch"])
        figures |= _spread("speedup_over_pytorch", ratios(rates["train"], rates["pytorch"]))
    return figures


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Return the ratios of figures that were measured next to each other."""
    return [a / b for a, b in zip(above, below, strict=True)]


def _spread(name: str, values: list[float]) -> dict[str, Any]:
    """Return the median, and the least and the most."""
    return {name: statistics.median(values), f"{name}_spread": [min(values), max(values)]}


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines for a person."""
    found = []
    for name, value in figures.items():
        if name.endswith("_spread"):
            continue
        text = _text(value)
        if f"{name}_spread" in figures:
            least, most = map(_text, figures[f"{name}_spread"])
            text = f"{text:<16}{least} to {most}"
        found.append(f"{name:<34}{text}")
    return found


def _text(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
