"""Teams with random parameters, as if they had been trained."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm_jax.export.agents import Trained
from gm_jax.export.weights import Scaler
from gm_jax.mappo import networks
from gm_jax.mappo.types import Best, Networks, TrainState, ValueNorm
from gm_jax.run.setup import static_config
from gm_jax.systems import SYSTEMS


AGENTS = 3
# as bars have them: small and skewed volatilities beside centred values
MEAN = np.array([1e-4, 1.4e-3, -4e-5, 7e-3, -3e-2, 0.3])
SCALE = np.array([5e-3, 2.6e-4, 0.1, 0.34, 0.71, 1.4])
ITERATIONS, BEST = 6, 4


@lru_cache
def trained(system: str = "tactical", **changes: object) -> Trained:
    """Return a run of a system with random networks and optimisers."""
    settings = SYSTEMS[system].settings.replace(**changes)
    config = static_config(SYSTEMS[system], settings)
    inputs = len(settings.features)
    scaler = Scaler(*(np.resize(x, inputs).astype(np.float32) for x in (MEAN, SCALE)))
    rng = np.random.default_rng(5)
    newest, best = random_networks(config, inputs, rng), random_networks(config, inputs, rng)
    state = TrainState(
        networks=newest,
        actor_opt=random_adam(newest.actor, rng),
        critic_opt=random_adam(newest.critic, rng),
        env=None,
        key=jax.random.key(0),
        update=jnp.int32(ITERATIONS * config.num_rollouts),
        iteration=jnp.int32(ITERATIONS),
        best=Best(best, jnp.float32(1.5), jnp.float32(1.5), jnp.int32(BEST)),
    )
    # with the heavy tails of volumes
    raw = scaler.mean + scaler.scale * rng.standard_t(4, (500, inputs))
    return Trained(config, settings, scaler, state, history(config), raw)


def random_networks(config, inputs: int, rng: np.random.Generator) -> Networks:
    """Draw every parameter, so that logits and values have several units."""
    copies, seen = (1, inputs + 3 + AGENTS) if config.central else (AGENTS, inputs + 1)

    def drawn(network, copies: int, inputs: int):
        shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros(inputs, np.float32))

        def one(path, x) -> np.ndarray:
            leaf = path[-1].key
            size = {"kernel": (2 / x.shape[0]) ** 0.5, "bias": 0.2, "scale": 0.2}[leaf]
            noise = size * rng.standard_normal((copies, *x.shape))
            return (noise + (leaf == "scale")).astype(np.float32)

        return jax.tree.map_with_path(one, shapes)

    norm = ValueNorm(
        mean=jnp.float32([35.0, -3.0, 2.5]),
        square=jnp.float32([4_000.0, 200.0, 5_000.0]),
        weight=jnp.float32(0.5),
    )
    actor = drawn(networks.actor_network(config), AGENTS, inputs + 1)
    return Networks(actor, drawn(networks.critic_network(config), copies, seen), norm)


def random_adam(params, rng: np.random.Generator) -> optax.ScaleByAdamState:
    """Draw the state of every copy's Adam."""

    def drawn(x):
        return rng.standard_normal(x.shape).astype(np.float32)

    copies = len(jax.tree.leaves(params)[0])
    mean, square = jax.tree.map(drawn, params), jax.tree.map(drawn, params)
    steps = (100 + 10 * np.arange(copies)).astype(np.int32)
    return optax.ScaleByAdamState(steps, mean, jax.tree.map(np.square, square))


def history(config) -> list[dict]:
    """Return rows of metrics.jsonl, one more than the checkpoint has seen."""
    agents = config.system.agents
    return [
        {
            "iteration": i,
            "env_steps": 64_000 * i,
            "reward": dict(zip(agents, (10.0 * i, 0.0, 5.0 * i), strict=True)),
            "actor_loss": dict(zip(agents, (-0.3, 0.0, 0.0), strict=True)),
            "critic_loss": dict(zip(agents, (1.0, 2.0, 6.0), strict=True)),
        }
        for i in range(1, ITERATIONS + 2)
    ]


def reference(params, copy: int, inputs: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Return what a copy of Flax parameters makes of raw inputs, in float64, one by one."""
    layers = jax.tree.map(lambda x: np.asarray(x[copy], np.float64), params["params"])
    count = len(scaler.mean)
    rows = []
    for raw in np.asarray(inputs, np.float64):
        x = raw.copy()
        for i in range(count):
            x[i] = (x[i] - float(scaler.mean[i])) / float(scaler.scale[i])
        dense = sum(name.startswith("Dense") for name in layers)
        for n in range(dense):
            layer = layers[f"Dense_{n}"]
            x = sum(x[i] * layer["kernel"][i] for i in range(len(x))) + layer["bias"]
            if n < dense - 1:
                x = np.where(x > 0, x, 0)
            if f"LayerNorm_{n}" in layers:
                norm = layers[f"LayerNorm_{n}"]
                mean = sum(x) / len(x)
                variance = sum((x - mean) ** 2) / len(x)
                x = (x - mean) / (variance + 1e-5) ** 0.5
                x = x * norm["scale"] + norm["bias"]
        rows.append(x)
    return np.array(rows)
