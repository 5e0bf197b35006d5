"""From Flax parameters to float32 state dicts of networks that take raw features.

The scaler goes into the first layer and the critic's unit into the last, both in float64:

    W' = W / scale,  b' = b − W' · mean    (role values and the account have mean 0 and scale 1)
    w' = w · deviation,  c' = c · deviation + mean of the returns

What float32 then loses in W' x + b', where x − mean was exact, grows with |mean| / scale: at 10 it
is as large as what any float32 network of such widths loses, at 100 too large.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gm_jax.deploy.networks import positions
from gm_jax.mappo import value_norm
from gm_jax.mappo.scaling import Scaler
from gm_jax.mappo.types import Networks


StateDict = dict[str, np.ndarray]  # by `net.{i}.{weight,bias}`, f32 contiguous


class Moments(NamedTuple):
    """The state of one network's Adam."""

    step: int
    exp_avg: StateDict
    exp_avg_sq: StateDict


def actor(networks: Networks, scaler: Scaler, agent: int) -> StateDict:
    """Return the actor of an agent: [raw features, role value] → [K] logits."""
    return _rounded(_scaled(_tensors(networks.actor, agent), scaler))


def critic(networks: Networks, scaler: Scaler, agent: int) -> StateDict:
    """Return the critic of an agent: [raw features, …] → [1] value in bp.

    Of a central critic it is the trunk with the agent's output row alone; its inputs are
    [raw features, position, drawdown, time left, role values].
    """
    tensors = _own_row(_tensors(networks.critic, agent), agent)
    weight, bias = _output(tensors)
    mean, deviation = unit(networks, agent)
    tensors[weight] = tensors[weight] * deviation
    tensors[bias] = tensors[bias] * deviation + mean
    return _rounded(_scaled(tensors, scaler))


def unit(networks: Networks, agent: int) -> tuple[float, float]:
    """Return mean and deviation of an agent's returns, bp."""
    mean, deviation = value_norm.moments(networks.value_norm)
    return float(mean[agent]), float(deviation[agent])


def actor_moments(opt: Any, scaler: Scaler, agent: int) -> Moments:
    """Return the state of an actor's Adam in the coordinates of `actor`.

    exp_avg is exact: ∂L/∂W' = ∂L/∂W · scale + ∂L/∂b · mean,  ∂L/∂b' = ∂L/∂b.
    exp_avg_sq has the squares of both terms and leaves out twice their product, of which Adam
    keeps no mean: for inputs with a mean other than zero it is an estimate.

    Args:
        opt: optax's ScaleByAdamState, leaves [A, …].
        scaler: of the features.
        agent: whose.
    """
    return Moments(
        _step(opt, agent),
        _rounded(_first(_tensors(opt.mu, agent), scaler, power=1)),
        _rounded(_first(_tensors(opt.nu, agent), scaler, power=2)),
    )


def critic_moments(opt: Any, scaler: Scaler, agent: int, deviation: float) -> Moments:
    """Return the state of a critic's Adam in the coordinates of `critic`, see `actor_moments`.

    The output row's gradients are divided by the deviation of the agent's returns, bp. The trunk of
    a central critic has learnt from all agents, and so have its moments.
    """

    def own(tree: Any, power: int) -> StateDict:
        tensors = _first(_own_row(_tensors(tree, agent), agent), scaler, power)
        return _rounded(
            tensors | {name: tensors[name] / deviation**power for name in _output(tensors)}
        )

    return Moments(_step(opt, agent), own(opt.mu, power=1), own(opt.nu, power=2))


def _step(opt: Any, agent: int) -> int:
    """Return how many steps Adam has taken."""
    count = np.asarray(opt.count)
    return int(count[_copy(count, agent)])


def _first(moments: StateDict, scaler: Scaler, power: int) -> StateDict:
    """Return means of gradients (power 1) or of their squares (2) of the scaled first layer."""
    weight, bias = moments["net.0.weight"], moments["net.0.bias"]
    mean, scale = scaler.padded(weight.shape[1])
    return moments | {"net.0.weight": weight * scale**power + bias[:, None] * mean**power}


def _tensors(tree: Any, agent: int) -> StateDict:
    """Return an agent's copy under the names of torch, in float64.

    Args:
        tree: parameters or their moments, leaves [C, …].
        agent: whose; all share a single copy.
    """
    layers = tree["params"]
    norms = sum(name.startswith("LayerNorm_") for name in layers)
    linear, norm = positions(len(layers) - norms - 1, norms)
    named: StateDict = {}
    for kind, indices, weight in (("Dense", linear, "kernel"), ("LayerNorm", norm, "scale")):
        for number, i in enumerate(indices):
            for name, leaf in (("weight", weight), ("bias", "bias")):
                stack = np.asarray(layers[f"{kind}_{number}"][leaf], np.float64)
                named[f"net.{i}.{name}"] = stack[_copy(stack, agent)].T
    return named


def _copy(stack: np.ndarray, agent: int) -> int:
    """Return which of the copies is the agent's: the only one where all share it."""
    return agent if len(stack) > 1 else 0


def _own_row(tensors: StateDict, agent: int) -> StateDict:
    """Return a critic with the agent's output alone."""
    return tensors | {
        name: tensors[name][_copy(tensors[name], agent)][None] for name in _output(tensors)
    }


def _output(tensors: StateDict) -> tuple[str, str]:
    """Return the names of the last layer's weight and bias."""
    last = max(_order(name) for name in tensors)[0]
    return f"net.{last}.weight", f"net.{last}.bias"


def _scaled(tensors: StateDict, scaler: Scaler) -> StateDict:
    """Return the network with the scaler in its first layer."""
    weight, bias = tensors["net.0.weight"], tensors["net.0.bias"]
    mean, scale = scaler.padded(weight.shape[1])
    weight = weight / scale
    return tensors | {"net.0.weight": weight, "net.0.bias": bias - weight @ mean}


def _rounded(tensors: StateDict) -> StateDict:
    """Return float32 tensors that share no memory, in the order of the network."""
    return {
        name: np.array(tensors[name], np.float32, order="C") for name in sorted(tensors, key=_order)
    }


def _order(name: str) -> tuple[int, bool]:
    """Return where in the network a tensor stands."""
    return int(name.split(".")[1]), name.endswith("bias")
