"""A program of its own: one iteration on 8 simulated devices, and on one of them, compared."""

import json
import os


os.environ["XLA_FLAGS"] = " ".join((
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"
))  # fmt: skip

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import cache
from gm_jax.mappo import learner
from gm_jax.mappo.sharding import to_host
from gm_jax.run import launch
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import TACTICAL


SETTINGS = {
    **{"hidden_sizes": (16, 16), "num_envs": 32, "episode_length": 50, "rollout_length": 50},
    **{"num_minibatches": 4, "num_epochs": 2, "market_bars": 6_000, "validate_every": 1},
}


def main():
    """Print what both came to."""
    cache.enable()
    settings = TACTICAL.settings.replace(**SETTINGS)
    setup = prepare(TACTICAL, settings, load(Source(market="planted"), settings, 5))
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    compiled = launch.compile_program(setup)
    eight = launch.Program(compiled, state)
    split = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(eight._state.env)}
    eight.run(1)
    rest = (setup.market, setup.params, setup.hyper, setup.segments)
    one, _ = learner.train(state, jnp.int32(1), *rest, config=setup.config)
    text = compiled.program.as_text()
    pairs = zip(jax.tree.leaves(to_host(eight.state())), jax.tree.leaves(to_host(one)), strict=True)
    print(
        json.dumps(
            {
                "devices": compiled.mesh.size,
                "split_over": sorted(split),
                "largest": max(map(difference, pairs)),
                "moved": [x for x in ("all-gather", "all-to-all", "permute") if f" {x}(" in text],
                "added_up": " all-reduce(" in text,
            }
        )
    )


def difference(pair):
    """Return the largest difference of two leaves, as a share of the largest value.

    Its floor is below that of Adam's second moments, which begin at 1e-10.
    """
    a, b = (np.asarray(x, np.float64) for x in pair)
    both = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        return np.inf
    return float(np.abs(a - b)[both].max(initial=0) / max(np.abs(b)[both].max(initial=0), 1e-12))


if __name__ == "__main__":
    main()
