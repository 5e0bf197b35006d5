"""Actors and critics: plain MLPs, parameters stacked over agents, applied with vmap."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import Array
from gm_jax.mappo.types import Config


# Masked logits: large and finite, since −inf · 0 gives NaN gradients.
ILLEGAL = -1e9


class MLP(nn.Module):
    """Hidden layers of ReLU, LayerNorm behind that of the first few, linear output."""

    hidden_sizes: tuple[int, ...]
    outputs: int
    output_scale: float  # of the orthogonal initialisation
    layer_norm: int
    dtype: Any
    precision: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [..., O] to [..., outputs] f32."""
        hidden = nn.initializers.orthogonal(2**0.5)
        for layer, width in enumerate(self.hidden_sizes):
            x = nn.Dense(width, kernel_init=hidden, dtype=self.dtype, precision=self.precision)(x)
            x = nn.relu(x)
            if layer < self.layer_norm:
                x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        output = nn.initializers.orthogonal(self.output_scale)
        last = nn.Dense(
            self.outputs,
            kernel_init=output,
            dtype=self.dtype,
            precision=self.precision,
            dot_general=_narrow_product,
        )
        return last(x).astype(jnp.float32)


def _narrow_product(x: Array, kernel: Array, dimensions: Any, precision: Any) -> Array:
    """Multiply [..., I] by [I, K], K small, as `nn.Dense` asks for it."""
    del dimensions  # always the last with the first
    return _product(x, kernel, precision)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, precision: Any) -> Array:
    return jnp.matmul(x, kernel, precision=precision)


def _product_forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel, precision), (x, kernel)


def _product_backward(
    precision: Any, factors: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    """Return the gradients; that of the kernel is (∂yᵀ x)ᵀ, not xᵀ ∂y.

    The same sums, but XLA's CPU backend takes far longer with the narrow factor second (2.4 ms for
    .3 with three times [2,000, 256] and [2,000, 5] on one core of an Intel Xeon of family 6, jax
    0.10.2); the barrier keeps the compiler from swapping the two.
    """
    x, kernel = factors
    rows = grad.reshape(-1, grad.shape[-1])
    of_kernel = jnp.matmul(rows.T, x.reshape(-1, x.shape[-1]), precision=precision)
    of_x = jnp.matmul(grad, kernel.T, precision=precision)
    return of_x, jax.lax.optimization_barrier(of_kernel).T


_product.defvjp(_product_forward, _product_backward)


def actor_network(config: Config) -> MLP:
    """Return the network of one actor: [O] → [K] logits."""
    return _mlp(config, len(config.system.actions), 0.01)


def critic_network(config: Config) -> MLP:
    """Return one critic: central [G] → [A] values, local [O] → [1]."""
    return _mlp(config, len(config.system.agents) if config.central else 1, 1.0)


def matmul_precision(name: str) -> tuple[Any, jax.lax.Precision | None]:
    """Return the type of a matrix product's factors, and how exactly float32 ones are multiplied.

    Left to itself a GPU computes float32 products in TF32, which keeps ten bits of each factor:
    here that is to be asked for. CPUs have no TF32 and compute in float32.

    Args:
        name: `precision` of the settings.
    """
    return {
        "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
        "tensorfloat32": (jnp.float32, jax.lax.Precision.HIGH),
        "bfloat16": (jnp.bfloat16, None),
    }[name]


def _mlp(config: Config, outputs: int, output_scale: float) -> MLP:
    dtype, precision = matmul_precision(config.precision)
    return MLP(config.hidden_sizes, outputs, output_scale, config.layer_norm, dtype, precision)


def init(key: Array, network: MLP, inputs: int, copies: int) -> Any:
    """Return parameters of `copies` networks, stacked on a leading axis."""
    keys = jax.random.split(key, copies)
    # one after another: jaxlib's batched QR decompositions can block each other on two cores
    return jax.lax.map(lambda k: network.init(k, jnp.zeros(inputs)), keys)


def init_actors(key: Array, config: Config, inputs: int) -> Any:
    """Return parameters of every actor, leaning to what its agent does when it is neutral.

    Trading at random costs so much that a team that begins with it soon learns never to trade, and
    with that nothing else. Here the position lasts and follows what is desired from the start, so
    that each agent sees what its own choice brings.
    """
    network = actor_network(config)
    params = init(key, network, inputs, copies=len(config.system.agents))
    actions, share = network.outputs, config.initial_neutral
    lean = np.zeros((len(config.system.agents), actions), np.float32)
    for agent, neutral in enumerate(config.system.team.NEUTRAL):
        odds = share / (1 - share) * (actions - len(neutral)) / len(neutral)
        lean[agent, list(neutral)] = np.log(odds)
    last = params["params"][f"Dense_{len(config.hidden_sizes)}"]
    last["bias"] = last["bias"] + lean
    return params


def in_product_type(config: Config, params: Any) -> Any:
    """Return parameters whose dense layers have the type of their products, the same networks.

    They are converted at every use otherwise, also where a loop uses the same ones at every step.

    Args:
        config: of the program.
        params: of actors or critics.
    """
    dtype, _ = matmul_precision(config.precision)
    return {
        "params": {
            name: jax.tree.map(lambda x: x.astype(dtype), layer) if "Dense" in name else layer
            for name, layer in params["params"].items()
        }
    }


def masked_logits(config: Config, params: Any, obs: Array, mask: Array) -> Array:
    """Return [..., A, K] logits of every actor, illegal actions at a large negative value.

    Args:
        config: of the program.
        params: leaves [A, …].
        obs: [..., A, O] f32.
        mask: [..., A, K] bool.
    """
    logits = _stacked(actor_network(config), params, obs)
    return jnp.where(mask, logits, ILLEGAL)


def values(config: Config, params: Any, inputs: Array) -> Array:
    """Return [..., A] normalised values.

    Args:
        config: of the program.
        params: leaves [C, …].
        inputs: [..., G] for the central critic, [..., A, O] for local ones.
    """
    network = critic_network(config)
    if config.central:
        return cast(Array, network.apply(jax.tree.map(lambda x: x[0], params), inputs))
    return _stacked(network, params, inputs)[..., 0]


def _stacked(network: MLP, params: Any, inputs: Array) -> Array:
    """Apply each agent's copy to its own inputs: leaves [A, …] and [..., A, O] → [..., A, K]."""
    apply = jax.vmap(network.apply, in_axes=(0, -2), out_axes=-2)
    return cast(Array, apply(params, inputs))


def log_probs(logits: Array, action: Array) -> tuple[Array, Array]:
    """Return log π(action) and the entropy over legal actions.

    Args:
        logits: [..., K] masked.
        action: [...] i32.
    """
    logp = jax.nn.log_softmax(logits)
    # not gathered: the gradient of that is a scatter, which no machine does well
    chosen = logp.sum(-1, where=jax.nn.one_hot(action, logits.shape[-1], dtype=bool))
    legal = logits > ILLEGAL / 2
    entropy = -jnp.sum(jnp.where(legal, jnp.exp(logp) * logp, 0), axis=-1)
    return chosen, entropy
