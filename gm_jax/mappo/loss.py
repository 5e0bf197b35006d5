"""Losses of PPO, per agent."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from gm_jax.env.types import Array
from gm_jax.mappo import networks
from gm_jax.mappo.types import Batch, Config, Hyper, Metrics


Rows = dict[str, Array]  # [B, A] each


def actor_loss(
    params: Any, batch: Batch, ent_coef: Array, hyper: Hyper, config: Config
) -> tuple[Array, Rows]:
    """Return the clipped surrogate summed over agents, and its rows.

    L = −E[min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â)] − c E[H(π)],  ρ = π(a) / π_old(a)

    The agents share no parameter, so the sum's gradient is each one's own.

    Source: Schulman et al. (2017), arXiv 1707.06347.
    """
    logits = networks.masked_logits(config, params, batch.obs, batch.mask)
    log_prob, entropy = networks.log_probs(logits, batch.action)
    log_ratio = log_prob - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - hyper.clip_eps, 1 + hyper.clip_eps)
    loss = -jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    total = loss.mean(0) - ent_coef * entropy.mean(0)
    return total.sum(), {"actor_loss": loss, "entropy": entropy, "log_ratio": log_ratio}


def critic_loss(params: Any, batch: Batch, hyper: Hyper, config: Config) -> tuple[Array, Rows]:
    """Return the clipped value loss in normalised units, summed over agents, and its rows.

    L = E[max(ℓ(V − R), ℓ(V_old + clip(V − V_old, ±ε) − R))],  ℓ Huber or half the square
    """
    value = networks.values(config, params, batch.global_obs)
    moved = batch.value + jnp.clip(value - batch.value, -hyper.clip_eps, hyper.clip_eps)
    loss = jnp.maximum(*(_error(v - batch.target, hyper, config) for v in (value, moved)))
    return loss.mean(0).sum(), {"critic_loss": loss, "unexplained": batch.target - value}


def metrics_of(rows: Rows, batch: Batch, hyper: Hyper) -> Metrics:
    """Return the metrics of a minibatch, [A] each.

    KL[π_old, π] ≈ E[(ρ − 1) − log ρ]

    Args:
        rows: of both losses, [B, A] each.
        batch: the minibatch.
        hyper: of the learner.
    """
    ratio = jnp.exp(rows["log_ratio"])
    moved = jnp.abs(ratio - 1)
    variance = jnp.maximum(jnp.var(batch.target, axis=0), 1e-8)
    return {
        "actor_loss": rows["actor_loss"].mean(0),
        "entropy": rows["entropy"].mean(0),
        "approx_kl": (ratio - 1 - rows["log_ratio"]).mean(0),
        "clip_fraction": (moved > hyper.clip_eps).astype(jnp.float32).mean(0),
        "ratio_error": moved.max(0),
        "critic_loss": rows["critic_loss"].mean(0),
        "explained_variance": 1 - jnp.var(rows["unexplained"], axis=0) / variance,
    }


def _error(error: Array, hyper: Hyper, config: Config) -> Array:
    square = 0.5 * error**2
    if not config.huber:
        return square
    size, delta = jnp.abs(error), hyper.huber_delta
    return jnp.where(size <= delta, square, delta * (size - 0.5 * delta))
