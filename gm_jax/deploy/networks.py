"""The networks of an exported model: plain MLPs that take raw features.

An exported model carries this file: torch and NumPy suffice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


EPSILON = 1e-5  # of LayerNorm, added to the variance


def positions(hidden: int, layer_norm: int) -> tuple[list[int], list[int]]:
    """Return the indices of the Linear and of the LayerNorm modules inside `net`.

    Args:
        hidden: layers, the output not counted.
        layer_norm: how many of the first have a LayerNorm.
    """
    kinds = _kinds(hidden, layer_norm)
    linear, norm = (
        [i for i, kind in enumerate(kinds) if kind == wanted] for wanted in ("Linear", "LayerNorm")
    )
    return linear, norm


def _kinds(hidden: int, layer_norm: int) -> list[str]:
    """Return the modules in order; Dropout does nothing and keeps the numbers of GrandModel."""
    kinds = []
    for layer in range(hidden):
        kinds += ["Linear", "ReLU"]
        if layer < layer_norm:
            kinds += ["LayerNorm", "Dropout"]
        elif not layer_norm and layer < hidden - 1:
            kinds += ["Dropout"]
    return [*kinds, "Linear"]


class Network(torch.nn.Module):
    """One actor or critic: [..., inputs] raw features → [..., outputs] logits or values."""

    def __init__(
        self, inputs: int, hidden_sizes: Sequence[int], layer_norm: int, outputs: int
    ) -> None:
        super().__init__()
        widths, width = iter((*hidden_sizes, outputs)), inputs
        self.hidden, self.layer_norm = len(hidden_sizes), layer_norm
        modules: list[torch.nn.Module] = []
        for kind in _kinds(self.hidden, layer_norm):
            if kind == "Linear":
                before, width = width, next(widths)
                modules.append(torch.nn.Linear(before, width))
            elif kind == "LayerNorm":
                modules.append(torch.nn.LayerNorm(width, eps=EPSILON))
            else:
                modules.append(torch.nn.ReLU() if kind == "ReLU" else torch.nn.Dropout(0.0))
        self.net = torch.nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., inputs] to [..., outputs] f32."""
        y: torch.Tensor = self.net(x)
        return y


class Actors:
    """The actors of a team, stacked, for one decision at a time.

    In NumPy: for single rows its calls cost least. On one core of an EPYC (family 26) a decision of
    three actors takes 0.034 ms (256, 256, 256) and 0.114 ms (512, 512, 256, LayerNorm); as
    `torch.baddbmm` 0.058 and 0.144 ms, as `torch.nn.functional.linear` 0.095 and 0.192 ms.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        linear, norm = positions(networks[0].hidden, networks[0].layer_norm)
        states = [network.state_dict() for network in networks]

        def stacked(indices: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
            """Return weight [A, …] and bias [A, …] of each of these modules."""
            return [
                (
                    np.stack([state[f"net.{i}.weight"].cpu().numpy() for state in states]),
                    np.stack([state[f"net.{i}.bias"].cpu().numpy() for state in states]),
                )
                for i in indices
            ]

        layers = stacked(linear)
        # what a LayerNorm scales and moves goes into the layer that follows it
        for layer, (scale, shift) in enumerate(stacked(norm), start=1):
            weight, bias = layers[layer]
            layers[layer] = weight * scale[:, None], bias + (weight @ shift[..., None])[..., 0]
        self._layers = [(weight, bias[..., None]) for weight, bias in layers]
        self._norms = len(norm)

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Return each actor's logits, [A, K] f32.

        Args:
            inputs: [A, O] f32, raw features and role value of each agent.
        """
        *hidden, (weight, bias) = self._layers
        x = inputs[..., None]
        for layer, (inner, moved) in enumerate(hidden):
            x = np.matmul(inner, x)
            x += moved
            np.maximum(x, 0, out=x)
            if layer < self._norms:
                _normalise(x)
        logits: np.ndarray = (np.matmul(weight, x) + bias)[..., 0]
        return logits


def _normalise(x: np.ndarray) -> None:
    """Bring each column of [A, width, 1] to mean 0 and variance 1, in place."""
    share = np.float32(1 / x.shape[1])
    x -= np.add.reduce(x, axis=1, keepdims=True) * share
    variance = np.add.reduce(x * x, axis=1, keepdims=True) * share
    x /= np.sqrt(variance + np.float32(EPSILON))
