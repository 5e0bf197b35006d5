"""How actors begin, and in what precision they multiply."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import tactical
from gm_jax.mappo import learner, networks
from gm_jax.run import launch
from tests.mappo.problems import planted_setup


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_actors_begin_near_their_neutral(share):
    config = planted_setup(initial_neutral=share).config
    params = networks.init_actors(jax.random.key(0), config, inputs=7)
    obs = np.random.default_rng(0).normal(size=(500, 3, 7)).astype(np.float32)
    logits = networks.masked_logits(config, params, obs, np.ones((500, 3, 5), bool))
    chance = np.asarray(jax.nn.softmax(logits))
    for agent, neutral in enumerate(tactical.NEUTRAL):
        of_neutral = chance[:, agent, list(neutral)].sum(axis=-1)
        np.testing.assert_allclose(of_neutral, share, atol=0.02)
        others = np.delete(chance[:, agent], neutral, axis=-1)
        np.testing.assert_allclose(others, (1 - share) / others.shape[-1], atol=0.01)
    assert chance.std(axis=0).min() > 0  # and the input matters from the start


@pytest.mark.parametrize(
    ("precision", "said"),
    [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")],
)
def test_the_compiler_is_told_how_exactly_to_multiply(precision, said):
    config = planted_setup(precision=precision).config
    params = networks.init_actors(jax.random.key(0), config, inputs=7)
    obs, legal = np.ones((8, 3, 7), np.float32), np.ones((8, 3, 5), bool)
    program = jax.jit(networks.masked_logits, static_argnums=0).lower(config, params, obs, legal)
    products = [x for x in program.as_text().splitlines() if "stablehlo.dot_general" in x]
    assert len(products) == len(config.hidden_sizes) + 1
    assert all(f"precision = [{said}, {said}]" in x for x in products)
    assert all(("bf16" in x) == (precision == "bfloat16") for x in products)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("critic", ["central", "local"])
def test_only_products_are_in_bfloat16(critic):
    """Logits, values, and all that is carried or logged are float32."""
    setup = planted_setup(precision="bfloat16", critic=critic, layer_norm=1)
    config, inputs = setup.config, (8, 12) if critic == "central" else (8, 3, 7)
    state = learner.abstract_state(setup.market, setup.params, config)
    trained = jax.eval_shape(
        partial(learner.train, config=config), state, np.int32(1), *launch.arguments_of(setup)
    )
    carried = [x.dtype for x in jax.tree.leaves(trained) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(carried) == {np.dtype(np.float32)}

    obs, legal = np.ones((8, 3, 7), np.float32), np.ones((8, 3, 5), bool)
    actor, critics = state.networks.actor, state.networks.critic
    logits = jax.eval_shape(partial(networks.masked_logits, config), actor, obs, legal)
    values = jax.eval_shape(partial(networks.values, config), critics, np.ones(inputs, np.float32))
    assert (logits.dtype, values.dtype) == (np.float32, np.float32)
    assert (logits.shape, values.shape) == ((8, 3, 5), (8, 3))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_converted_parameters_are_the_same_networks(precision):
    config = planted_setup(precision=precision, layer_norm=2).config
    params = networks.init_actors(jax.random.key(0), config, inputs=7)
    scales = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + scales.normal(size=x.shape, scale=0.1), params)
    obs = np.random.default_rng(0).normal(size=(64, 3, 7)).astype(np.float32)
    apply = partial(networks.masked_logits, config, obs=obs, mask=np.ones((64, 3, 5), bool))
    converted = networks.in_product_type(config, params)
    np.testing.assert_array_equal(apply(converted), apply(params))
    kernels = [x for x in jax.tree.leaves(converted) if x.ndim == 3]
    assert {str(x.dtype) for x in kernels} == {precision}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_output_layer_has_the_gradients_of_a_plain_product(precision, monkeypatch):
    config = planted_setup(precision=precision, layer_norm=1).config
    params = networks.init_actors(jax.random.key(0), config, inputs=7)
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + draws.normal(size=x.shape, scale=0.1), params)
    obs = draws.normal(size=(50, 3, 7)).astype(np.float32)
    wanted = draws.normal(size=(50, 3, 5)).astype(np.float32)

    def loss(params, obs):
        return (networks.masked_logits(config, params, obs, wanted > -1) * wanted).sum()

    gradients = jax.grad(loss, argnums=(0, 1))
    own = gradients(params, obs)
    monkeypatch.setattr(networks, "_narrow_product", jax.lax.dot_general)
    plain = gradients(params, obs)
    rtol = {"float32": 1e-5, "bfloat16": 2e-2}[precision]
    for ours, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
        assert np.abs(theirs).max() > 0


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers order factors anew")
def test_a_cpu_multiplies_the_narrow_gradient_first():
    config = planted_setup(hidden_sizes=(16,)).config
    params = networks.init_actors(jax.random.key(0), config, inputs=7)
    obs, legal = np.ones((50, 3, 7), np.float32), np.ones((50, 3, 5), bool)
    gradient = jax.jit(jax.grad(lambda p: networks.masked_logits(config, p, obs, legal).sum()))
    lines = gradient.lower(params).compile().as_text().splitlines()
    made = [line.split("=")[1].split("{")[0].strip() for line in lines if " dot(" in line]
    assert "f32[3,5,16]" in made
    assert "f32[3,16,5]" not in made
