"""Estimate on paper what one and many H200 could reach, and write it into benchmarks/README.md.

    python benchmarks/roofline.py

FLOPs and bytes are counted in the lowered program (`gm_jax.bench.hlo`), nothing is run. The bytes
are those that every matrix product reads and writes if nothing stays on the chip between two of
them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import NamedTuple

import jax
from run import README, replaced

from gm_jax.bench import hlo
from gm_jax.mappo import learner
from gm_jax.run import launch
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import SYSTEMS


PEAK = {"float32": 60e12, "bfloat16": 790e12}  # FLOP/s of an H200: no TF32; measured on 8192³
MEMORY = 4.3e12  # bytes/s
SHARE = 0.5  # of the roofline that is taken to be reached; an assumption, CPUs reach .57 to .84
NUM_ENVS = 16_384  # a device: with few, launching kernels decides
# up to so many devices: bytes/s of a device's link, seconds a message
LINKS = {8: (450e9, 10e-6), 1_000: (50e9, 20e-6)}
DEVICES = (1, 8, 64, 1_000)


class Work(NamedTuple):
    """What a program of one precision does."""

    setup: Setup
    flops: float  # an environment step
    moved: float  # bytes an environment step
    gradients: int  # bytes of the gradients of all networks, float32


def work_of(system: str, precision: str) -> Work:
    """Count the default program of a system with NUM_ENVS environments."""
    recipe = SYSTEMS[system]
    length = recipe.settings.rollout_length
    settings = recipe.settings.replace(
        num_envs=NUM_ENVS, episode_length=length, precision=precision, market_bars=20_000
    )
    source = load(Source(market="planted"), settings, recipe.minutes)
    setup = prepare(recipe, settings, source)
    setup = replace(setup, config=replace(setup.config, micro_rows=sys.maxsize))  # as on a GPU
    found = hlo.work(launch.lower(setup).as_text(dialect="hlo"))
    networks = learner.abstract_state(setup.market, setup.params, setup.config).networks
    parameters = sum(x.size for x in jax.tree.leaves((networks.actor, networks.critic)))
    steps = NUM_ENVS * setup.episode_length
    return Work(setup, found.flops / steps, found.moved / steps, 4 * parameters)


def bound(work: Work) -> tuple[float, float]:
    """Return the environment steps/s that arithmetic and memory admit on one device."""
    return PEAK[work.setup.settings.precision] / work.flops, MEMORY / work.moved


def seconds(work: Work, devices: int) -> tuple[float, float]:
    """Return what an update computes for, and what its all-reduces take."""
    config = work.setup.config
    computing = NUM_ENVS * config.rollout_length / (SHARE * min(bound(work)))
    link, latency = next(x for most, x in LINKS.items() if devices <= most)
    ring = 2 * (devices - 1) / devices * work.gradients / link
    messages = 2 * math.ceil(math.log2(devices)) * latency
    reductions = config.num_epochs * config.num_minibatches
    return computing, reductions * (ring + messages)


def table(works: list[Work]) -> str:
    """Return both tables as Markdown."""
    one = [
        "| one device | MFLOP a step | kB a step | FLOP a byte | arithmetic admits, steps/s "
        "| memory admits, steps/s |",
        "|---" * 6 + "|",
    ]
    many = [
        f"| devices × {NUM_ENVS:,} environments | " + " | ".join(map(str, DEVICES)) + " |",
        "|---" * (1 + len(DEVICES)) + "|",
    ]
    for work in works:
        name = f"{work.setup.system.name}, {work.setup.settings.precision}"
        arithmetic, memory = (f"{x / 1e6:,.1f} million" for x in bound(work))
        sizes = f"{work.flops / 1e6:.1f} | {work.moved / 1e3:,.0f} | {work.flops / work.moved:.0f}"
        one.append(f"| {name} | {sizes} | {arithmetic} | {memory} |")
        cells = []
        for devices in DEVICES:
            computing, waiting = seconds(work, devices)
            share = computing / (computing + waiting)
            rate = devices * share * SHARE * min(bound(work))
            cells.append(f"{rate / 1e6:,.{0 if rate > 1e8 else 1}f} million ({share:.0%})")
        gradients = f"{work.gradients / 1e6:.1f} MB of gradients"
        many.append(f"| {name}, {gradients} | {' | '.join(cells)} |")
    return "\n".join([*one, "", *many])


def main() -> None:
    """Write the tables."""
    works = [work_of(system, precision) for system in SYSTEMS for precision in PEAK]
    text = README.read_text(encoding="utf-8")
    README.write_text(replaced(text, "roofline", table(works)), encoding="utf-8")


if __name__ == "__main__":
    main()
