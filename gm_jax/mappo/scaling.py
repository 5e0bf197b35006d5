"""The scaler of the features, and networks moved from one scaler to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gm_jax.mappo.types import Networks


@dataclass(frozen=True)
class Scaler:
    """Centre and scale of the raw features, fitted on training bars."""

    mean: np.ndarray  # [F] f64
    scale: np.ndarray  # [F] f64, above 0

    def padded(self, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of all inputs [I]; those behind the features come as they are."""
        more = inputs - len(self.mean)
        return np.append(self.mean, np.zeros(more)), np.append(self.scale, np.ones(more))

    def equals(self, other: Scaler) -> bool:
        """Return whether both scale alike."""
        return np.array_equal(self.mean, other.mean) and np.array_equal(self.scale, other.scale)


def rescaled(networks: Networks, old: Scaler, new: Scaler) -> Networks:
    """Return networks that make of features scaled by `new` what these make of `old` ones.

    W' = W · s' / s,  b' = b + W · (m' − m) / s,  in float64: the same function of raw features,
    but for the rounding to float32.

    Args:
        networks: of a team.
        old: scaler of their inputs.
        new: scaler of the inputs to come.
    """
    if old.equals(new):
        return networks
    return networks.replace(
        actor=_rescaled(networks.actor, old, new), critic=_rescaled(networks.critic, old, new)
    )


def _rescaled(params: Any, old: Scaler, new: Scaler) -> Any:
    """Return the parameters of stacked networks, leaves [C, …], with another first layer."""
    first = params["params"]["Dense_0"]
    kernel = np.asarray(first["kernel"], np.float64)  # [C, I, width]
    (m, s), (mean, scale) = (scaler.padded(kernel.shape[1]) for scaler in (old, new))
    shift = np.einsum("cih,i->ch", kernel, (mean - m) / s)
    layer = {
        "kernel": jnp.asarray(kernel * (scale / s)[:, None], jnp.float32),
        "bias": jnp.asarray(np.asarray(first["bias"], np.float64) + shift, jnp.float32),
    }
    return {"params": {**params["params"], "Dense_0": layer}}
