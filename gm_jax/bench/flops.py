"""The work of an environment step, counted by hand from the sizes of the networks."""

from __future__ import annotations

from typing import Any

import jax

from gm_jax.mappo import learner
from gm_jax.run.setup import Setup


def flops_per_env_step(setup: Setup) -> int:
    """Return the dense layers' floating-point operations per environment step.

    Forward costs 2 per weight. Backward costs 2 per weight for the gradient of the weights, and 2
    for that of the inputs, which the first layer does not need. An actor goes forward once to act,
    a critic twice to value this state and the next; both go forward and backward in every epoch.
    """
    networks = learner.abstract_state(setup.market, setup.params, setup.config).networks
    epochs = setup.config.num_epochs
    return sum(
        2 * weights(params) * (visits + 3 * epochs) - 2 * _first(params) * epochs
        for params, visits in ((networks.actor, 1), (networks.critic, 2))
    )


def weights(params: Any) -> int:
    """Count the entries of all kernels, leaves [copies, inputs, outputs]."""
    return sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 3)


def _first(params: Any) -> int:
    """Count the entries of the first layer's kernels."""
    return int(params["params"]["Dense_0"]["kernel"].size)
