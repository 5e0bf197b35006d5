"""How actors begin."""

import jax
import numpy as np
import pytest

from gm_jax.env import tactical
from gm_jax.mappo import networks
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
