"""What only a GPU can show; elsewhere these skip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account
from gm_jax.mappo import learner
from gm_jax.settings import Settings
from tests.env.worlds import params_of
from tests.mappo.problems import planted_setup


@pytest.fixture(autouse=True)
def needs_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip(f"needs a GPU that JAX sees; this is {jax.default_backend()}")


@pytest.mark.gpu
def test_impact_is_numpys_cent():
    contracts = jnp.arange(0, 2_000, dtype=jnp.int32)
    coefficient = jnp.linspace(0, 40, 2_000, dtype=jnp.float32)
    params = params_of(Settings())
    impact = jax.jit(jax.vmap(account.order_cost, in_axes=(0, None, 0, None)))(
        contracts, jnp.int32(1), coefficient, params
    )[2]
    q = np.arange(2_000, dtype=np.float32)
    numpy = np.ceil((np.float32(params.impact) * np.asarray(coefficient)) * (q * np.sqrt(q)))
    np.testing.assert_array_equal(impact, numpy.astype(np.int32))


@pytest.mark.gpu
def test_training_runs_on_the_gpu():
    setup = planted_setup(num_envs=256)
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    state, metrics = learner.train(state, jnp.int32(4), *arguments, config=setup.config)
    assert all(d.platform == "gpu" for d in jax.tree.leaves(state.networks)[0].devices())
    assert np.isfinite(metrics["reward"][:4]).all()
