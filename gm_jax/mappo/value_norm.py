"""Value normalisation: the critic predicts returns in units of their running deviation."""

from __future__ import annotations

import jax.numpy as jnp

from gm_jax.env.types import Array
from gm_jax.mappo.types import ValueNorm


def init(agents: int) -> ValueNorm:
    """Return statistics that have seen nothing: mean 0, deviation 1."""
    return ValueNorm(jnp.zeros(agents), jnp.zeros(agents), jnp.zeros(()))


def moments(norm: ValueNorm) -> tuple[Array, Array]:
    """Return the debiased mean and standard deviation, [A] each."""
    seen = norm.weight > 0
    weight = jnp.where(seen, norm.weight, 1)
    mean = norm.mean / weight
    variance = jnp.maximum(norm.square / weight - mean**2, 1e-4)
    return mean, jnp.where(seen, jnp.sqrt(variance), 1)


def normalise(norm: ValueNorm, returns: Array) -> Array:
    """Return (returns − mean) / deviation, [..., A]."""
    mean, deviation = moments(norm)
    return (returns - mean) / deviation


def denormalise(norm: ValueNorm, values: Array) -> Array:
    """Return values · deviation + mean, [..., A]."""
    mean, deviation = moments(norm)
    return values * deviation + mean


def update(norm: ValueNorm, returns: Array, decay: Array) -> ValueNorm:
    """Return the statistics after one rollout of returns [..., A]."""
    axes = tuple(range(returns.ndim - 1))
    return ValueNorm(
        mean=decay * norm.mean + (1 - decay) * returns.mean(axes),
        square=decay * norm.square + (1 - decay) * (returns**2).mean(axes),
        weight=decay * norm.weight + (1 - decay),
    )
