"""Small operations that states and teams share."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from gm_jax.env.types import Array, EnvParams


Tree = TypeVar("Tree")


def select(condition: Array, chosen: Tree, otherwise: Tree) -> Tree:
    """Return `chosen` where the condition holds, else `otherwise`, leaf by leaf.

    Args:
        condition: [] bool, or of the leaves' leading axis under vmap.
        chosen: pytree.
        otherwise: pytree of the same structure.
    """
    return jax.tree.map(partial(jnp.where, condition), chosen, otherwise)


def uniform(bits: Array, low: Array, high: Array) -> Array:
    """Draw a whole number from low to high, both included (i32), from 32 random bits."""
    return low + jnp.int32(bits % jnp.uint32(high - low + 1))


def lots_towards(gap: Array, params: EnvParams) -> Array:
    """Return the verb that leads by `gap` contracts as fast as lots can.

    0 hold, 1 and 2 buy the small and the large lot, 3 and 4 sell them: so in every team.
    """
    left = jnp.abs(gap) - params.lots_large  # what the large lot leaves must be none or a lot
    large = (left == 0) | (left >= params.lots_small)
    small = jnp.abs(gap) >= params.lots_small
    size = jnp.where(large, 2, jnp.where(small, 1, 0))
    return jnp.int32(jnp.where((gap < 0) & (size > 0), size + 2, size))
