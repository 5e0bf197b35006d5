"""Losses of PPO, per agent."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from gm_jax.env.types import Array
from gm_jax.mappo import networks
from gm_jax.mappo.types import Batch, Config, Hyper, Metrics


def actor_loss(
    params: Any, batch: Batch, ent_coef: Array, hyper: Hyper, config: Config
) -> tuple[Array, Metrics]:
    """Return the clipped surrogate summed over agents, and per-agent metrics [A].

    L = −E[min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â)] − c E[H(π)],  ρ = π(a) / π_old(a)

    The agents share no parameter, so the sum's gradient is each one's own.

    Source: Schulman et al. (2017), arXiv 1707.06347; KL estimate (ρ − 1) − log ρ.
    """
    logits = networks.masked_logits(config, params, batch.obs, batch.mask)
    log_prob, entropy = networks.log_probs(logits, batch.action)
    log_ratio = log_prob - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - hyper.clip_eps, 1 + hyper.clip_eps)
    surrogate = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage).mean(0)
    loss = -surrogate - ent_coef * entropy.mean(0)
    metrics = {
        "actor_loss": -surrogate,
        "entropy": entropy.mean(0),
        "approx_kl": (ratio - 1 - log_ratio).mean(0),
        "clip_fraction": (jnp.abs(ratio - 1) > hyper.clip_eps).astype(jnp.float32).mean(0),
        "ratio_error": jnp.abs(ratio - 1).max(0),
    }
    return loss.sum(), metrics


def critic_loss(params: Any, batch: Batch, hyper: Hyper, config: Config) -> tuple[Array, Metrics]:
    """Return the clipped value loss in normalised units, summed over agents, and metrics [A].

    L = E[max(ℓ(V − R), ℓ(V_old + clip(V − V_old, ±ε) − R))],  ℓ Huber or half the square
    """
    value = networks.values(config, params, batch.global_obs)
    moved = batch.value + jnp.clip(value - batch.value, -hyper.clip_eps, hyper.clip_eps)
    errors = [_error(v - batch.target, hyper, config) for v in (value, moved)]
    loss = jnp.maximum(*errors).mean(0)
    unexplained = jnp.var(batch.target - value, axis=0)
    explained = 1 - unexplained / jnp.maximum(jnp.var(batch.target, axis=0), 1e-8)
    return loss.sum(), {"critic_loss": loss, "explained_variance": explained}


def _error(error: Array, hyper: Hyper, config: Config) -> Array:
    square = 0.5 * error**2
    if not config.huber:
        return square
    size, delta = jnp.abs(error), hyper.huber_delta
    return jnp.where(size <= delta, square, delta * (size - 0.5 * delta))
