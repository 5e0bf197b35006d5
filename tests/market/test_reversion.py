"""The mean-reverting market: its law and the filter of its deviation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gm_jax.market.paths import bar_sd
from gm_jax.market.reversion import kalman_belief
from gm_jax.market.synthetic import generate
from tests.market.statistics import autocorrelation, variance_ratio


@pytest.mark.parametrize("minutes", [5, 30])
def test_returns_have_the_promised_variance_and_revert(minutes):
    """VR(q) = 1 − share + share (1 − phi^q) / (q (1 − phi)), below 1 and falling."""
    world = generate("mean_reverting", bars=1_000_000, minutes=minutes, seed=1)
    share, phi = world.parameters["share"], 2 ** (-1 / world.parameters["half_life"])
    z = np.log(world.bars.close / world.bars.open) / bar_sd(0.16, minutes)
    assert abs(z.std() - 1) < 0.005 and abs(np.mean(z**4) / z.var() ** 2 - 3) < 0.03
    for lag in (1, 10, 40):  # −share (1 − phi) phi^(lag−1) / 2
        expected = -share * (1 - phi) * phi ** (lag - 1) / 2
        assert abs(autocorrelation(z, lag) - expected) < 4e-3
    for q in (2, 10, 50):
        expected = 1 - share + share * (1 - phi**q) / (q * (1 - phi))
        assert abs(variance_ratio(z, q) - expected) < 4 * math.sqrt(q / len(z)) and expected < 1
    np.testing.assert_array_equal(world.bars.open[1:], world.bars.close[:-1])


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_share_and_half_life_are_those_of_the_deviation(share):
    world = generate(
        "mean_reverting",
        bars=400_000,
        minutes=5,
        seed=3,
        parameters={"share": share, "half_life": 30.0},
    )
    deviation, sd = -world.state, bar_sd(0.16, 5)
    assert abs(np.diff(deviation).var() / sd**2 / share - 1) < 0.01
    assert abs(autocorrelation(deviation, 30) - 0.5) < 0.02
    walk = np.diff(np.log(world.bars.close) - deviation)  # what is left is a random walk
    assert abs(walk.var() / sd**2 / (1 - share) - 1) < 0.02
    assert abs(autocorrelation(walk, 1)) < 0.01  # ticks give −.001
    assert abs(np.corrcoef(walk, np.diff(deviation))[0, 1]) < 0.01


@pytest.mark.parametrize(("half_life", "share"), [(12.0, 0.6), (0.5, 0.3), (300.0, 0.95)])
def test_belief_is_the_normal_law_given_all_returns(half_life, share):
    """Condition the joint normal law of returns and deviation at once, without a recursion."""
    n, phi = 60, 2 ** (-1 / half_life)
    usual = share / (2 - 2 * phi)
    lag = np.abs(np.subtract.outer(np.arange(n + 1), np.arange(n + 1)))
    deviation = usual * phi**lag  # [n + 1, n + 1], the first before bar 0
    step = np.diff(np.eye(n + 1), axis=0)
    returns = step @ deviation @ step.T + (1 - share) * np.eye(n)
    z = np.linalg.cholesky(returns) @ np.random.default_rng(1).standard_normal(n)
    expected = []
    for t in range(1, n + 1):
        seen, shared = returns[:t, :t], (deviation @ step.T)[t, :t]
        mean = shared @ np.linalg.solve(seen, z[:t])
        variance = usual - shared @ np.linalg.solve(seen, shared)
        expected.append(math.erf(-mean / math.sqrt(2 * variance)))
    np.testing.assert_allclose(kalman_belief(z, half_life, share), expected, atol=1e-9)


def test_belief_of_the_world_is_that_filter_of_its_closes():
    world = generate("mean_reverting", bars=2_000, minutes=30, seed=5)
    close = world.bars.close
    z = np.log(close / np.r_[world.bars.open[0], close[:-1]]) / bar_sd(0.16, 30)
    p = world.parameters
    np.testing.assert_allclose(
        world.belief, kalman_belief(z, p["half_life"], p["share"]), atol=1e-12
    )


def test_belief_sees_no_later_bar():
    z = np.random.default_rng(0).standard_normal(500)
    whole = kalman_belief(z, 12.0, 0.6)
    for t in (0, 1, 250, 498):
        changed = np.r_[z[: t + 1], -5 * z[t + 1 :]]
        np.testing.assert_array_equal(kalman_belief(changed, 12.0, 0.6)[: t + 1], whole[: t + 1])
        np.testing.assert_array_equal(kalman_belief(z[: t + 1], 12.0, 0.6), whole[: t + 1])
