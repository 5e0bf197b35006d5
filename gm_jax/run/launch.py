"""The compiled program on all devices there are, with the state that it carries."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered

from gm_jax.errors import NotFiniteError, UserError
from gm_jax.mappo import learner
from gm_jax.mappo.sharding import AXIS, everywhere, from_host, places, to_host
from gm_jax.mappo.types import Config, Metrics, TrainState
from gm_jax.run import cluster, executables, memory
from gm_jax.run.directory import to_json
from gm_jax.run.progress import say
from gm_jax.run.record import model_config, rebuild
from gm_jax.run.setup import Setup
from gm_jax.run.signals import first_is_a_wish
from gm_jax.run.source import Source


MEMORY_SHARE = 0.8  # of what is free that a program may take


@dataclass(frozen=True)
class Compiled:
    """`learner.train` for a setup, not yet begun."""

    setup: Setup
    mesh: Mesh | None  # the devices that share the environments; None for one
    program: Any  # (state, iterations, market, params, hyper, segments) -> (state, metrics)
    seconds: float  # it took

    @property
    def bytes_needed(self) -> int:
        """What the busiest moment takes of a device's memory, by the compiler's account."""
        found = self.program.memory_analysis()
        return int(found.argument_size_in_bytes + found.temp_size_in_bytes)


def together(setup: Setup, source: Source, begun: bool = False) -> Compiled:
    """Compile a run in every process, see `fitting_program`; the others `follow`.

    Args:
        setup: of the run.
        source: of its bars.
        begun: it has a state, whose size is settled.
    """
    if cluster.several():
        cluster.message(json.loads(to_json(model_config(setup, source) | {"begun": begun})))
    return cluster.agreed(lambda: fitting_program(setup, begun))


def follow() -> None:
    """Train with the leading process, to the end that it says.

    Raises:
        UserError: this process or another cannot take part.
    """
    with first_is_a_wish("ending with the leading process"):
        if (config := cluster.message()) is None:
            cluster.leave()
            return
        compiled = cluster.agreed(lambda: fitting_program(_rebuilt(config), config["begun"]))
        if cluster.wait() == cluster.END:
            cluster.leave()
            return
        setup = compiled.setup
        # only its shapes matter: the leader sends the state
        state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
        with Program(compiled, state) as program:
            program.follow()


def _rebuilt(config: dict[str, Any]) -> Setup:
    """Return the setup of the leading process."""
    if config["code_version"] != version("gm-jax"):
        raise UserError(
            f"The leading process has gm-jax {config['code_version']}, this one "
            f"{version('gm-jax')}: install the same in all."
        )
    return rebuild(config, "the leading process's run")[0]


def compile_program(setup: Setup) -> Compiled:
    """Compile the training of a setup, for all devices that can share its environments."""
    began, mesh = time.monotonic(), mesh_of(setup.config)
    config = replace(setup.config, mesh=mesh)
    program = executables.compiled(config, arguments_of(setup), partial(lower, setup, mesh))
    return Compiled(setup, mesh, program, time.monotonic() - began)


def lower(setup: Setup, mesh: Mesh | None = None) -> Lowered:
    """Return the training of a setup before it is compiled, for the devices of a mesh."""
    state = learner.abstract_state(setup.market, setup.params, setup.config)
    count, arguments = jnp.int32(1), arguments_of(setup)
    if mesh is not None:
        state = jax.tree.map(_placed_shape, state, places(state, mesh))
        whole = partial(_placed_shape, place=everywhere(mesh))
        count, arguments = jax.tree.map(whole, (count, arguments))
    config = replace(setup.config, mesh=mesh)
    return learner.train.lower(state, count, *arguments, config=config)


def fitting_program(setup: Setup, begun: bool = False) -> Compiled:
    """Compile for as many environments as fit the memory that is free, and say what they take.

    Args:
        setup: of the run.
        begun: it has as many as it has; where they may not fit, that is a warning.

    Raises:
        UserError: not even the fewest fit, not all in each of several processes, or there is too
            little memory to compile what has begun.
    """
    asked = setup.settings.num_envs
    while True:
        found, free = _compiled(setup), memory.device()["free"]
        needed, envs = found.bytes_needed if found else math.inf, setup.settings.num_envs
        take = f"take {_mib(needed)} of" if found else "cannot be compiled in"
        takes = f"memory: {envs:,} environments {take} {_mib(free)} that are free"
        fits = needed <= MEMORY_SHARE * free
        if found and (fits or begun):
            fewer = f": fewer than the {asked:,} asked for" if envs < asked else ""
            _say(f"{'' if fits else 'warning: '}{takes}{fewer}")
            return found
        if begun or cluster.several():
            raise UserError(f"{takes} on this process's device; train with a smaller num_envs.")
        setup = _fewer(setup, takes)


def _compiled(setup: Setup) -> Compiled | None:
    """Return the program of a setup; None where the memory does not even suffice to compile it."""
    try:
        return compile_program(setup)
    except jax.errors.JaxRuntimeError as error:
        if not memory.ran_out(error):
            raise
        return None


def _fewer(setup: Setup, takes: str) -> Setup:
    """Return a setup with half as many environments, or the next fewer that can be parted."""
    config, asked = setup.config, setup.settings
    size, minibatches = config.num_envs // config.groups, config.num_minibatches
    lengths = (config.rollout_length, asked.rollout_length)  # as it fits the bars, as asked for

    def parted(groups: int) -> bool:
        return all(groups * size * length % minibatches == 0 for length in lengths)

    groups = next(filter(parted, range(config.groups // 2, 0, -1)), 0)
    if not groups:
        raise UserError(
            f"{takes}, and fewer cannot be trained with num_minibatches {minibatches}. Set "
            "smaller hidden_sizes, a shorter rollout_length or more num_minibatches."
        )
    envs = groups * size
    return replace(
        setup, settings=asked.replace(num_envs=envs), config=replace(config, num_envs=envs)
    )


class Program:
    """A compiled program under way.

    Args:
        compiled: see `compile_program`.
        state: where it begins, on one device; given up.
    """

    def __init__(self, compiled: Compiled, state: TrainState) -> None:
        self._compiled, self._mesh = compiled, compiled.mesh
        self._arguments, self._state = arguments_of(compiled.setup), state
        if (mesh := compiled.mesh) is not None:
            self._arguments = jax.tree.map(partial(_put, place=everywhere(mesh)), self._arguments)
            cluster.lead(cluster.BEGIN)
            plain = cluster.arrays(to_host(state)) if cluster.several() else to_host(state)
            split = jax.tree.map(_put, plain, places(plain, mesh))
            self._state = split.replace(key=jax.random.wrap_key_data(split.key))
            self._gather = jax.jit(lambda x: x, out_shardings=everywhere(mesh))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, (UserError, NotFiniteError)):
            cluster.lead(cluster.END)
            cluster.leave()

    def run(self, count: int) -> Metrics:
        """Run iterations; return their metrics on the host, see `learner.train`."""
        cluster.lead(count)
        iterations: Any = jnp.int32(count)
        if self._mesh is not None:
            iterations = _put(np.int32(count), everywhere(self._mesh))
        with cluster.unbroken():
            state, metrics = self._compiled.program(self._state, iterations, *self._arguments)
            found: Metrics = jax.device_get(metrics)
        self._state = state
        return found

    def state(self) -> TrainState:
        """Return the state on one device."""
        if self._mesh is None:
            return self._state
        if not cluster.several():
            return from_host(to_host(self._state))
        cluster.lead(cluster.GATHER)
        with cluster.unbroken():
            return from_host(to_host(self._gather(self._state)))

    def follow(self) -> None:
        """Do what the leading process says until it says that this is the end."""
        while told := cluster.wait():
            if told == cluster.GATHER:
                self.state()
            else:
                self.run(told)


def mesh_of(config: Config) -> Mesh | None:
    """Return the devices that share the environments; None for one.

    Raises:
        UserError: several processes whose devices cannot have equal shares.
    """
    devices = jax.devices()
    count = math.gcd(config.groups, len(devices))
    if count < len(devices):
        size = config.num_envs // config.groups
        parted = f"num_envs {config.num_envs} is no multiple of {size} x {len(devices)}"
        if cluster.several():
            raise UserError(f"{len(devices)} devices cannot have equal shares: {parted}.")
        _say(f"warning: {count} of {len(devices)} devices are used: {parted}")
    return Mesh(np.array(devices[:count]), (AXIS,)) if count > 1 else None


def arguments_of(setup: Setup) -> tuple[Any, ...]:
    """Return what the program takes beside state and iterations."""
    return setup.market, setup.params, setup.hyper, setup.segments


def _placed_shape(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _put(value: Any, place: Any) -> jax.Array:
    """Return what every process has alike as one array over the devices of all of them."""
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def _say(line: str) -> None:
    """Say a line once, however many processes there are."""
    if not cluster.follows():
        say(line)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
