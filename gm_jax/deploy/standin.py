"""What the simulator uses of JAX and Flax, for one account at a time, in a few microseconds.

In `deploy_model.py` this stands in for `jax.numpy`, `jax` and `flax.struct`. Whole numbers and
truth values are Python's own, choices between them plain branches: far quicker than NumPy's
scalars. What JAX computes in float32 is NumPy's float32, the same IEEE operations, so that every
cent is the same. Vectors (an axis of agents or of actions) are NumPy arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import numpy as np


Array = Any
uint32, concatenate, log = np.uint32, np.concatenate, np.log
argmax, ceil, floor, rint, sqrt = np.argmax, np.ceil, np.floor, np.rint, np.sqrt


class PyTreeNode:
    """A record with `replace`, as `flax.struct.PyTreeNode`."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(cls)

    def replace(self, **changes: Any) -> Any:
        """Return a copy with some fields changed."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **changes)
        return copy


def _tree_map(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply a function to corresponding leaves of equal trees of records."""
    first = trees[0]
    if not isinstance(first, PyTreeNode):
        return function(*trees)
    leaves = map(_tree_map, repeat(function), *(vars(tree).values() for tree in trees))
    return first.replace(**dict(zip(vars(first), leaves, strict=True)))


tree = SimpleNamespace(map=_tree_map)


def where(condition: Array, a: Array, b: Array) -> Array:
    """Choose `a` where the condition holds, else `b`."""
    if type(condition) is np.ndarray:
        return np.where(condition, a, b)
    return a if condition else b


def maximum(a: Array, b: Array) -> Array:
    """Return the larger of two values."""
    if type(a) is np.ndarray or type(b) is np.ndarray:
        return np.maximum(a, b)
    return a if a >= b else b


def minimum(a: Array, b: Array) -> Array:
    """Return the smaller of two values."""
    if type(a) is np.ndarray or type(b) is np.ndarray:
        return np.minimum(a, b)
    return a if a <= b else b


def clip(x: Array, low: Array, high: Array) -> Array:
    """Bring a value between two bounds; the upper one wins."""
    return minimum(maximum(x, low), high)


def abs(x: Array) -> Array:
    """Return the value without its sign."""
    return x.__abs__()


def sign(x: Array) -> Array:
    """Return −1, 0 or 1."""
    return np.sign(x) if type(x) is np.ndarray else int(x > 0) - int(x < 0)


def logical_not(x: Array) -> Array:
    """Return whether a condition does not hold."""
    return ~x if type(x) is np.ndarray else not x


def select(conditions: Sequence[Any], choices: Sequence[Any], default: Any) -> Any:
    """Return the choice of the first condition that holds."""
    for condition, choice in zip(conditions, choices, strict=True):
        if condition:
            return choice
    return default


def int32(x: Any) -> Any:
    """Return whole numbers, towards zero."""
    return x.astype(np.int32) if type(x) is np.ndarray else int(x)


def float32(x: Any) -> Any:
    """Return float32."""
    return x.astype(np.float32) if type(x) is np.ndarray else np.float32(x)


def asarray(value: Any, dtype: Callable[[Any], Any] | None = None) -> Any:
    """Return a scalar of a type, or what is there already."""
    return value if dtype is None else dtype(value)


def stack(values: Sequence[Any]) -> np.ndarray:
    """Join values along a new first axis."""
    return np.array(values)


array = stack


def arange(stop: int) -> np.ndarray:
    """Count from 0."""
    return np.arange(stop)


def zeros_like(x: Any) -> Any:
    """Return zeros of the same type and shape."""
    return np.zeros_like(x) if type(x) is np.ndarray else type(x)(0)
