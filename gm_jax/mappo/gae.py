"""Generalised advantage estimation with both endings."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm_jax.env.types import Array


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: Array,
    gae_lambda: Array,
) -> tuple[Array, Array]:
    """Return advantages and value targets, [H, ...] each.

    δₜ = rₜ + γ (1 − terminatedₜ) V(s'ₜ) − V(sₜ)
    Âₜ = δₜ + γ λ (1 − terminatedₜ)(1 − truncatedₜ) Âₜ₊₁,   target = Â + V

    Args:
        reward: [H, ...] received for step t.
        value: [H, ...] of the state of step t.
        next_value: [H, ...] of the real next state, before any reset.
        terminated: [H, ...] bool, no future after step t.
        truncated: [H, ...] bool, the future was cut off.
        gamma: discount.
        gae_lambda: λ.

    Source: Schulman et al. (2016), arXiv 1506.02438.
    """
    going_on = jnp.logical_not(terminated).astype(value.dtype)
    joined = going_on * jnp.logical_not(truncated).astype(value.dtype)
    delta = reward + gamma * going_on * next_value - value

    def backwards(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        error, keep = step
        advantage = error + gamma * gae_lambda * keep * following
        return advantage, advantage

    joined = jnp.broadcast_to(joined, delta.shape)
    last, steps = jnp.zeros_like(delta[0]), (delta, joined)
    # unrolled: on a GPU launching a step takes longer than what it does
    _, advantage = jax.lax.scan(backwards, last, steps, reverse=True, unroll=5)
    return advantage, advantage + value
