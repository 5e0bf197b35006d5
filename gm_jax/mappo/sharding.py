"""Environments over devices: each has its share of them, and all have the same networks.

The compiler turns one program into one for every device and adds up their gradients; nothing else
of a rollout crosses from one to another.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gm_jax.mappo.types import Config, TrainState


Tree = TypeVar("Tree")

AXIS = "environments"


def over_devices(tree: Tree, config: Config) -> Tree:
    """Keep the leading axis of every leaf split over the devices of the program, if several."""
    if config.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(config.mesh, PartitionSpec(AXIS)))


def in_place(state: TrainState, config: Config) -> TrainState:
    """Keep every leaf of a state where `places` says."""
    if config.mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, places(state, config.mesh))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Return the place of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def places(state: TrainState, mesh: Mesh) -> TrainState:
    """Return the place of each leaf: environments are split, everything else is everywhere."""
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    placed: TrainState = jax.tree.map(lambda _: everywhere(mesh), state)
    return placed.replace(env=jax.tree.map(lambda _: split, state.env))


def to_host(state: TrainState) -> TrainState:
    """Return the state as NumPy arrays, which any machine can read."""
    plain = state.replace(key=jax.random.key_data(state.key))
    host: TrainState = jax.tree.map(np.asarray, jax.device_get(plain))
    return host


def from_host(plain: TrainState) -> TrainState:
    """Return what `to_host` gave on the device of this process."""
    state: TrainState = jax.device_put(plain, may_alias=False)
    return state.replace(key=jax.random.wrap_key_data(state.key))
