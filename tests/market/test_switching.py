"""Markets that switch between two hidden states: their laws and the filter that follows them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from gm_jax.market.paths import bar_sd, extremes, streams
from gm_jax.market.switching import hamilton_belief, hidden_state
from gm_jax.market.synthetic import World, generate


LAW = {  # lopsided in everything
    "duration_up": 7.0,
    "duration_down": 3.0,
    "drift_up": 0.4,
    "drift_down": -0.7,
    "volatility_ratio": 1.8,
}
PLANTED = pytest.mark.parametrize(
    ("minutes", "duration", "kappa", "accuracy"), [(5, 276, 0.12, 0.79), (30, 92, 0.25, 0.83)]
)
SWITCHING = pytest.mark.parametrize("market", ["risk_only", "volatility_step", "two_state"])


def returns_in_deviations(world: World) -> np.ndarray:
    sd = bar_sd(world.parameters["annual_volatility"], world.bars.minutes)
    return np.log(world.bars.close / world.bars.open) / sd


# --- laws -------------------------------------------------------------------------------------


@PLANTED
def test_planted_keeps_its_law(minutes, duration, kappa, accuracy):
    world = generate("planted", bars=100_000, minutes=minutes, seed=7)
    state, n = world.state, 100_000
    assert world.parameters["duration"] == duration and world.parameters["kappa"] == kappa
    flips, p = np.mean(state[1:] != state[:-1]), 1 / duration
    assert abs(flips - p) < 4 * np.sqrt(p * (1 - p) / n)

    sd = 0.16 / np.sqrt(252 * 1380 / minutes)
    shock = returns_in_deviations(world) - kappa * state
    assert abs(shock.mean()) < 4 / np.sqrt(n)
    assert abs(shock.var() - 1) < 4 * np.sqrt(2 / n) + 0.005  # rounding to ticks adds a little
    assert abs(np.mean(shock**4) - 3) < 0.1
    # Highs and lows: the mean range of a Brownian path is √(8/π) of its deviation.
    span = np.log(world.bars.high / world.bars.low) / sd
    assert abs(span.mean() / np.sqrt(8 / np.pi) - 1) < 0.02
    assert abs(world.bars.volume.mean() / (1950 * minutes / 5) - 1) < 0.01


OTHER = {"kappa": 0.3, "duration": 40, "annual_volatility": 0.3, "start_price": 4_000}


@pytest.mark.parametrize(
    ("minutes", "seed", "parameters", "digest", "belief"),
    [
        (5, 0, {}, "92e8403161f6e457", [-0.009889692248841701, 0.6381043534712304]),
        (30, 0, {}, "25cb2db5a42a44f5", [0.01121438005293008, 0.8293602181941454]),
        (5, 7, OTHER, "4cfd32f922053a31", [-0.19532701678599027, 0.8698055516046205]),
    ],
)
def test_planted_bars_of_a_seed_never_change(minutes, seed, parameters, digest, belief):
    world = generate("planted", bars=5_000, minutes=minutes, seed=seed, parameters=parameters)
    b = world.bars
    columns = np.stack([b.open, b.high, b.low, b.close, b.volume])
    assert hashlib.sha256(columns.tobytes()).hexdigest()[:16] == digest
    np.testing.assert_allclose(world.belief[[0, -1]], belief, atol=1e-12)


@SWITCHING
@pytest.mark.parametrize("minutes", [5, 30])
def test_drift_volatility_and_durations_are_those_asked_for(market, minutes):
    long = {"annual_volatility": 0.02}  # a smaller step, so that 400,000 bars stay in range
    if market == "volatility_step":
        long |= {"duration_up": 600.0, "duration_down": 300.0}
    world = generate(market, bars=400_000, minutes=minutes, seed=2, parameters=long)
    z, p = returns_in_deviations(world), world.parameters
    start = np.flatnonzero(np.diff(world.state, prepend=0))
    length, value = np.diff(start), world.state[start[:-1]]
    for sign, side, sd in ((1, "up", 1.0), (-1, "down", p["volatility_ratio"])):
        x, runs = z[world.state == sign], length[value == sign]
        assert abs(x.mean() - p[f"drift_{side}"]) < 4 * sd / np.sqrt(len(x))
        # A small step is few ticks: rounding both ends adds 1/6 tick² to the variance.
        assert abs(x.std() / sd - 1) < 4 / np.sqrt(2 * len(x)) + 0.02
        mean = p[f"duration_{side}"]
        assert abs(runs.mean() - mean) < 4 * mean / np.sqrt(len(runs))
        assert abs(runs.std() / runs.mean() - 1) < 0.2  # as likely to end at any age
    assert set(world.state) == {-1.0, 1.0}


def test_the_chain_starts_as_it_goes_on():
    first = [hidden_state(1, 30.0, 10.0, streams(seed))[0] for seed in range(2_000)]
    assert abs(np.mean(first) - 0.5) < 4 * np.sqrt(0.75 / 2_000)  # up three quarters of the time
    assert set(first) == {-1.0, 1.0}


def test_components_have_their_own_noise():
    weak, strong = (
        generate("planted", bars=500, minutes=5, seed=1, parameters={"kappa": k})
        for k in (0.1, 0.3)
    )
    drift = np.log(strong.bars.close / weak.bars.close)
    sd = bar_sd(0.16, 5)
    np.testing.assert_allclose(drift, 0.2 * sd * np.cumsum(weak.state), atol=3e-5)  # a tick
    np.testing.assert_array_equal(weak.bars.volume, strong.bars.volume)
    np.testing.assert_array_equal(weak.state, strong.state)


def test_extremes_have_their_exact_law():
    n, end = 200_000, np.full(200_000, 0.5)
    high, low = extremes(np.zeros(n), end, 1.0, streams(0))
    assert high.min() >= 0.5 and low.max() <= 0.0
    for level in (0.6, 1.0, 1.5):  # P(max > m | ends) = exp(-2 m (m - end) / sd²)
        expected = np.exp(-2 * level * (level - 0.5))
        assert abs(np.mean(high > level) - expected) < 0.005
        assert abs(np.mean(low < 0.5 - level) - expected) < 0.005


def test_highs_and_lows_tell_nothing_of_the_state():
    """Given the bars before and its ends, a bar's reach has one law in both states."""
    parameters = {"volatility_ratio": 3.0, "annual_volatility": 0.5}
    world = generate("two_state", bars=200_000, minutes=5, seed=0, parameters=parameters)
    b, sd = world.bars, bar_sd(0.5, 5)
    before = np.r_[0.0, world.belief[:-1]]
    variance = sd**2 * ((1 + before) / 2 + (1 - before) / 2 * 9)
    ends = np.log(b.open), np.log(b.close)
    for reach in (np.log(b.high), np.log(b.low)):
        u = np.exp(-2 * (reach - ends[0]) * (reach - ends[1]) / variance)  # even on 0..1
        for sign in (1, -1):
            x = u[world.state == sign]
            # An eighth of a tick of rounding, squared, is a few thousandths of a deviation.
            assert abs(x.mean() - 0.5) < 4 / np.sqrt(12 * len(x)) + 0.004


# --- the filter -------------------------------------------------------------------------------


def paths_of(states: int) -> Iterator[np.ndarray]:
    return (np.array(path) for path in itertools.product((1, -1), repeat=states))


def test_belief_is_bayes_over_all_paths_of_the_state():
    """Add up the joint probability of the returns and each of the 2^t state paths."""
    z = np.random.default_rng(0).normal(size=10) * 1.5
    p_up, p_down = 1 / LAW["duration_up"], 1 / LAW["duration_down"]
    leave = {1: p_up, -1: p_down}
    start = {1: p_down / (p_up + p_down), -1: p_up / (p_up + p_down)}
    law = {1: (LAW["drift_up"], 1.0), -1: (LAW["drift_down"], LAW["volatility_ratio"])}
    expected = []
    for t in range(1, len(z) + 1):
        mass = {1: 0.0, -1: 0.0}
        for path in paths_of(t):
            probability = start[path[0]]
            for a, b in itertools.pairwise(path):
                probability *= leave[a] if a != b else 1 - leave[a]
            for x, s in zip(z[:t], path, strict=True):
                mean, sd = law[s]
                probability *= np.exp(-0.5 * ((x - mean) / sd) ** 2) / sd
            mass[path[-1]] += probability
        expected.append((mass[1] - mass[-1]) / (mass[1] + mass[-1]))
    np.testing.assert_allclose(hamilton_belief(z, **LAW), expected, atol=1e-12)


@pytest.mark.parametrize(
    "market",
    ["planted", "planted_hard", "risk_only", "execution_only", "volatility_step", "two_state"],
)
def test_belief_of_a_world_is_the_textbook_filter_of_its_closes(market):
    """Hamilton's recursion in two probabilities, from the world's own bars and parameters."""
    world = generate(market, bars=3_000, minutes=30, seed=2)
    p = world.parameters
    up, down = p.get("duration_up", p.get("duration")), p.get("duration_down", p.get("duration"))
    mean = np.array([p.get("drift_up", p.get("kappa")), p.get("drift_down", -p.get("kappa", 0))])
    sd = np.array([1.0, p.get("volatility_ratio", 1.0)])
    close = world.bars.close
    z = np.log(close / np.r_[world.bars.open[0], close[:-1]]) / bar_sd(p["annual_volatility"], 30)
    move = np.array([[1 - 1 / up, 1 / down], [1 / up, 1 - 1 / down]])
    now, expected = np.array([up, down]) / (up + down), []
    for x in z:
        now = move @ now * np.exp(-0.5 * ((x - mean) / sd) ** 2) / sd
        now /= now.sum()
        expected.append(now[0] - now[1])
    np.testing.assert_allclose(world.belief, expected, atol=1e-11)


@PLANTED
def test_filter_is_as_good_as_theory_says(minutes, duration, kappa, accuracy):
    worlds = [generate("planted", bars=60_000, minutes=minutes, seed=seed) for seed in range(4)]
    hits = [np.mean(np.sign(world.belief) == world.state) for world in worlds]
    assert abs(np.mean(hits) - accuracy) < 0.012


def test_belief_sees_no_later_bar():
    z = np.random.default_rng(0).standard_normal(500)
    whole = hamilton_belief(z, **LAW)
    for t in (0, 1, 250, 498):
        changed = np.r_[z[: t + 1], -5 * z[t + 1 :]]
        np.testing.assert_array_equal(hamilton_belief(changed, **LAW)[: t + 1], whole[: t + 1])
        np.testing.assert_array_equal(hamilton_belief(z[: t + 1], **LAW), whole[: t + 1])


def test_belief_stays_within_bounds_for_any_return():
    law = LAW | {"duration_up": 1e6, "duration_down": 2.0, "volatility_ratio": 0.1}
    belief = hamilton_belief(np.array([0.0, 50.0, -50.0, 0.0, 1e3, -1e3]), **law)
    assert np.all(np.abs(belief) <= 1)
