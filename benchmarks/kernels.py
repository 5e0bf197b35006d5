"""Compile the training program for H200s, without one, and count the kernels that it runs.

    pip install -e '.[cuda12]'       # Linux; no GPU is needed
    python benchmarks/kernels.py     # minutes on two cores: writes the table of README.md

XLA compiles for a GPU that is described to it. Without one it cannot try which kernel of a matrix
product is fastest, and takes its first choice; that it may record several kernels into one launch
(CUDA graphs) is not seen here.
"""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding
from run import README, replaced

from gm_jax.batch_trials import program_bytes
from gm_jax.bench import hlo, programs
from gm_jax.mappo.sharding import AXIS
from gm_jax.run import launch
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import SYSTEMS


H200 = """
gpu_device_info {
  name: "NVIDIA H200"
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "12.8.0"
  runtime_version: "12.8.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""
NUM_ENVS, ROLLOUT = 1_024, 128  # a device; so that no minibatch is padded
NOTHING = {  # what runs on the host or not at all
    *("parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all"),
    *("while", "conditional", "partition-id"),
}
OPTIONS = {"xla_gpu_autotune_level": 0}
COLLECTIVES = ("all-", "collective-", "reduce-scatter")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Kernels(NamedTuple):
    """What a compiled program runs, kernels and, of them, what crosses between devices."""

    step: int  # of the rollout
    minibatch: int
    update: int  # all in all
    crossing_step: int
    crossing_minibatch: int


class Loops:
    """The kernels of a compiled program, loop by loop."""

    def __init__(self, text: str) -> None:
        self._computations, self.entry = hlo.parse(text)

    def inside(self, name: str) -> list[tuple[str, int]]:
        """Return the bodies of a computation's loops, and how often they run."""
        lines = [line.rest for line in self._computations[name] if line.operation == "while"]
        trips = [_TRIPS.search(rest) for rest in lines]
        bodies = [re.findall(r"body=%?([\w.-]+)", rest)[0] for rest in lines]
        return [(b, int(t[1]) if t else 1) for b, t in zip(bodies, trips, strict=True)]

    def kernels(self, name: str) -> list[str]:
        """Return what a computation runs itself, outside of its loops."""
        operations = [line.operation for line in self._computations[name]]
        return [x for x in operations if x not in NOTHING and not x.endswith("-done")]

    def whole(self, name: str) -> int:
        """Return how many kernels a computation runs, its loops included."""
        inner = sum(trips * self.whole(body) for body, trips in self.inside(name))
        return len(self.kernels(name)) + inner

    def crossing(self, name: str) -> int:
        """Return how many kernels of a computation, outside of its loops, cross devices."""
        return sum(x.startswith(COLLECTIVES) for x in self.kernels(name))


def prepared(system: str, precision: str, num_envs: int) -> Setup:
    """Return a run of the default networks with one rollout an iteration."""
    recipe = SYSTEMS[system]
    settings = recipe.settings.replace(
        num_envs=num_envs, precision=precision, rollout_length=ROLLOUT, episode_length=ROLLOUT,
        num_minibatches=4, market_bars=20_000,
    )  # fmt: skip
    return prepare(recipe, settings, load(Source(market="planted"), settings, recipe.minutes))


def training(system: str, precision: str, devices: list[Any]) -> tuple[Kernels, int]:
    """Compile training; return its kernels, and its bytes a device."""
    setup = prepared(system, precision, NUM_ENVS * len(devices))
    program = launch.lower(setup, Mesh(np.array(devices), (AXIS,))).compile(OPTIONS)
    return counted(program.as_text()), program_bytes(program)


def counted(text: str) -> Kernels:
    """Count the kernels of a compiled training with one rollout an iteration."""
    loops = Loops(text)
    ((iteration, _),) = loops.inside(loops.entry)
    (rollout,) = [body for body, trips in loops.inside(iteration) if trips == ROLLOUT]
    epochs = loops.inside(iteration)
    ((minibatch, _),) = [inner for body, _ in epochs for inner in loops.inside(body)]
    numbers = (len(loops.kernels(x)) for x in (rollout, minibatch))
    crossing = (loops.crossing(x) for x in (rollout, minibatch))
    return Kernels(*numbers, loops.whole(iteration), *crossing)


def environment_step(system: str, device: Any) -> int:
    """Compile the environment alone; return the kernels of a step."""
    setup = prepared(system, "float32", NUM_ENVS)
    place = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (jax.random.key(0), setup.market, setup.params),
    )
    program = programs.env_only.lower(*arguments, setup.config).compile(OPTIONS)
    loops = Loops(program.as_text())
    (step,) = [body for body, trips in loops.inside(loops.entry) if trips == programs.ENV_STEPS]
    return loops.whole(step)


def table(found: dict[str, tuple[Kernels, int, Kernels]], alone: dict[str, int]) -> str:
    """Return what devices run as Markdown.

    Args:
        found: by name, the kernels of one device, its bytes, the kernels of each of eight.
        alone: by system, the kernels of a step of the environment alone.
    """
    lines = [
        f"| {NUM_ENVS:,} environments a device | kernels an environment-only step "
        "| kernels a rollout step | kernels a minibatch | kernels an update | program MiB "
        "| collectives a rollout step and a minibatch, 8 devices |",
        "|---" * 7 + "|",
    ]
    for name, (one, size, eight) in found.items():
        only = alone[name.partition(",")[0]]
        counts = f"{only} | {one.step} | {one.minibatch} | {one.update:,} | {size / 2**20:,.0f}"
        crossing = f"{eight.crossing_step} and {eight.crossing_minibatch}"
        lines.append(f"| {name} | {counts} | {crossing} |")
    return "\n".join(lines)


def eight_h200() -> list[Any]:
    """Return eight devices to compile for."""
    jax.config.update("jax_platforms", "cpu")  # a GPU that is here is not asked
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=H200, topology="1x1x8"
        )
    except NotImplementedError:
        sys.exit("JAX has no CUDA plugin here; expected it: pip install -e '.[cuda12]'")
    return list(topology.devices)


def main() -> None:
    """Write the table."""
    devices, found, alone = eight_h200(), {}, {}
    for system in SYSTEMS:
        alone[system] = environment_step(system, devices[0])
        print(f"{system}, environment alone: {alone[system]}", flush=True)
        for precision in ("float32", "bfloat16"):
            one, size = training(system, precision, devices[:1])
            eight, _ = training(system, precision, devices)
            found[f"{system}, {precision}"] = one, size, eight
            print(f"{system}, {precision}: {one}, {size:,} bytes; 8 devices: {eight}", flush=True)
    text = README.read_text(encoding="utf-8")
    README.write_text(replaced(text, "kernels", table(found, alone)), encoding="utf-8")


if __name__ == "__main__":
    main()
