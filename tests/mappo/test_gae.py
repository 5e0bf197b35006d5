"""Advantages against a float64 loop and by hand, with both endings."""

import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.mappo.gae import gae


def reference(reward, value, next_value, terminated, truncated, gamma, lam):
    """Sum the definition term by term, float64: Â = Σ (γλ)ᵏ δ up to the first ending."""
    reward, value, next_value = (
        np.asarray(x, dtype=np.float64) for x in (reward, value, next_value)
    )
    advantage = np.zeros_like(reward)
    for start in range(len(reward)):
        factor = np.ones(reward.shape[1:])
        for step in range(start, len(reward)):
            future = gamma * np.where(terminated[step], 0, next_value[step])
            advantage[start] += factor * (reward[step] + future - value[step])
            factor = factor * gamma * lam * ~(terminated[step] | truncated[step])
    return advantage


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.995, 1.0)])
def test_equals_the_definition(gamma, lam):
    rng = np.random.default_rng(0)
    shape = (43, 7, 3)
    reward, value, next_value = rng.standard_normal((3, *shape))
    terminated, truncated = rng.random((2, *shape)) < 0.1
    truncated &= ~terminated
    arrays = [jnp.asarray(x, dtype=jnp.float32) for x in (reward, value, next_value)]
    advantage, target = gae(*arrays, terminated, truncated, gamma, lam)
    wanted = reference(reward, value, next_value, terminated, truncated, gamma, lam)
    np.testing.assert_allclose(advantage, wanted, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(target, wanted + value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("terminated", "truncated", "wanted"),
    [
        # rewards 1 and 10, values 2 and 3, next values 3 and 5, γ = λ = ½
        (False, False, [1 + 0.5 * 3 - 2 + 0.25 * 9.5, 9.5]),
        (True, False, [1 - 2, 9.5]),  # no bootstrap, recursion cut
        (False, True, [1 + 0.5 * 3 - 2, 9.5]),  # bootstrap, recursion cut
    ],
)
def test_endings_by_hand(terminated, truncated, wanted):
    advantage, _ = gae(
        jnp.array([1.0, 10.0]),
        jnp.array([2.0, 3.0]),
        jnp.array([3.0, 5.0]),
        jnp.array([terminated, False]),
        jnp.array([truncated, False]),
        0.5,
        0.5,
    )
    np.testing.assert_allclose(advantage, wanted)
