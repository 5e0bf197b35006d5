"""Two small operations that states need everywhere."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from gm_jax.env.types import Array


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
    return low + (bits % (high - low + 1).astype(jnp.uint32)).astype(jnp.int32)
