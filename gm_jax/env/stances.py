"""Stances: what each says about the next bar, fitted once on the training bars.

A stance's law is the normal law of the deseasonalised return that followed the bars of its regime
in training; the unconditional law is that of all. What is paid for a stance is

    clip(ln f_stance(z) − ln f(z), ±2) − its mean over the training bars.

Without the mean a stance that knows nothing would lose the divergence of the two laws, and the wild
ones most: silence would be paid.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct

from gm_jax.env.types import Array
from gm_jax.market.regimes import REGIMES


VOLATILITY, RETURN, REGIME = range(3)  # columns of Market.signals
CLIP = 2.0  # nats
LEAST = 30  # training bars of a regime that make a law of its own


class Law(struct.PyTreeNode):
    """Laws of the next deseasonalised return, S stances; the last row is the unconditional one."""

    mean: Array  # [S + 1] f32
    deviation: Array  # [S + 1] f32
    centre: Array  # [S] f32, mean of the clipped ratio over the training bars


def fit(signals: np.ndarray, train: tuple[int, int], young: int = 0) -> Law:
    """Return the laws of the training bars; a rare regime has the unconditional one.

    Args:
        signals: [T, 3] f64, see `VOLATILITY`, `RETURN`, `REGIME`.
        train: half-open range of training bars.
        young: first bars, NORMAL only because their regime is not known yet: of no regime here.
    """
    first, end = train
    known, move = signals[first : end - 1, REGIME], signals[first + 1 : end, RETURN]
    labelled = np.arange(first, end - 1) >= young
    groups = [move[labelled & (known == regime)] for regime in range(len(REGIMES))]
    groups = [group if len(group) >= LEAST else move for group in groups]
    mean = np.array([group.mean() for group in (*groups, move)])
    deviation = np.array([group.std() for group in (*groups, move)])
    deviation = np.where(deviation > 0, deviation, 1)
    law = Law(*(jnp.asarray(x, jnp.float32) for x in (mean, deviation, np.zeros(len(REGIMES)))))
    ratios = log_ratio(law, jnp.arange(len(REGIMES)), jnp.asarray(move, jnp.float32)[:, None])
    return law.replace(centre=jnp.asarray(np.asarray(ratios, np.float64).mean(0), jnp.float32))


def log_ratio(law: Law, stance: Array, move: Array) -> Array:
    """Return the centred, clipped log-likelihood ratio of a return under a stance, nats.

    Args:
        law: fitted.
        stance: i32, index into REGIMES.
        move: f32, deseasonalised return.
    """

    def log_density(row: Array) -> Array:
        scaled = (move - law.mean[row]) / law.deviation[row]
        return -0.5 * scaled**2 - jnp.log(law.deviation[row])

    ratio = log_density(stance) - log_density(jnp.int32(len(REGIMES)))
    return jnp.clip(ratio, -CLIP, CLIP) - law.centre[stance]
