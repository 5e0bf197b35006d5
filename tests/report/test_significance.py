"""Significance against scipy, against figures by hand and against what it promises."""

import itertools

import numpy as np
import pytest
from scipy import stats

from gm_jax.report.significance import (
    deflated_sharpe,
    expected_maximum,
    pbo,
    probabilistic_sharpe,
    session_sharpe,
    session_sharpes,
)


# the Sharpe ratio of sessions


def test_session_sharpe_by_hand():
    """+2 % and −1 % in turn: mean 0.5 %, sample deviation 1.5 % · √(20/19)."""
    returns = np.tile([0.02, -0.01], 10)
    assert session_sharpe(returns) == pytest.approx((19 / 20) ** 0.5 / 3, rel=1e-12)
    stacked = np.stack([returns, -returns, 0 * returns, 0 * returns + 0.01])
    many = session_sharpes(stacked)
    assert many == pytest.approx([many[0], -many[0], 0, 0], rel=1e-12)
    assert [session_sharpe(row) for row in stacked[2:]] == [None, None]
    assert session_sharpe(returns[:1]) is None


# probabilistic


def test_probabilistic_sharpe_by_hand():
    """Symmetric and two-valued: γ3 = 0 and γ4 = 1, so that the error is 1/√(n − 1)."""
    returns = np.tile([0.02, -0.01], 50)
    sharpe = (99 / 100) ** 0.5 / 3
    assert probabilistic_sharpe(returns) == pytest.approx(
        stats.norm.cdf(sharpe * 99**0.5), rel=1e-12
    )
    assert probabilistic_sharpe(returns, sharpe) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("benchmark", [-0.1, 0.0, 0.05])
@pytest.mark.parametrize("seed", range(5))
def test_probabilistic_sharpe_is_the_formula_by_scipy(seed, benchmark):
    returns = stats.skewnorm.rvs(4, loc=-0.7, size=200, random_state=seed) / 100
    sharpe = returns.mean() / returns.std(ddof=1)
    skew, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    error = np.sqrt((1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2) / 199)
    wanted = stats.norm.cdf((sharpe - benchmark) / error)
    assert probabilistic_sharpe(returns, benchmark) == pytest.approx(wanted, rel=1e-10)


def test_published_example():
    """Bailey and López de Prado (2014): 1,250 sessions, annual Sharpe 2.5, N 100, V ½: 0.9004.

    Annual figures over 250 sessions, γ3 −3 and γ4 10; the expected maximum they give is 0.1132 a
    session.
    """
    best = expected_maximum(0.5 / 250, 100)
    assert best == pytest.approx(0.1132, abs=5e-5)
    sharpe = 2.5 / 250**0.5
    error = np.sqrt((1 + 3 * sharpe + (10 - 1) / 4 * sharpe**2) / 1_249)
    assert stats.norm.cdf((sharpe - best) / error) == pytest.approx(0.9004, abs=5e-5)

    # γ4 = γ3² + 1 is a law of two values; to whole sessions, 105 of the lower one
    low, high = (-3 - 13**0.5) / 2, (-3 + 13**0.5) / 2
    x = np.repeat([low, high], [105, 1_145])
    assert (stats.skew(x), stats.kurtosis(x, fisher=False)) == pytest.approx((-3, 10), rel=1e-3)
    returns = 0.01 * ((x - x.mean()) / x.std(ddof=1) + sharpe)
    assert probabilistic_sharpe(returns, best) == pytest.approx(0.9004, abs=1e-4)


def test_under_no_skill_the_probability_is_uniform():
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.standard_normal(250), lambda: rng.standard_t(5, 250)):
        found = [probabilistic_sharpe(draw()) for _ in range(2_000)]
        assert stats.kstest(found, "uniform").pvalue > 0.01


def test_skill_at_the_benchmark_is_a_coin_and_more_is_more():
    rng = np.random.default_rng(1)
    many = [rng.normal(0.1, 1, 500) for _ in range(1_000)]
    assert np.mean([probabilistic_sharpe(x, 0.1) for x in many]) == pytest.approx(0.5, abs=0.03)
    longer = [probabilistic_sharpe(np.tile(many[0], k)) for k in (1, 2, 4)]
    assert sorted(longer) == longer
    tail = np.append(many[0], -6.0)  # a crash makes less of the same Sharpe ratio
    same = many[0] - many[0].mean() + session_sharpe(tail) * many[0].std(ddof=1)
    assert session_sharpe(same) == pytest.approx(session_sharpe(tail))
    assert probabilistic_sharpe(tail) < probabilistic_sharpe(same)


@pytest.mark.parametrize("returns", [[], [0.1], [0.1] * 30, [0.0] * 30])
def test_no_probability_where_there_is_no_sharpe_ratio(returns):
    assert probabilistic_sharpe(np.array(returns)) is None
    assert deflated_sharpe(np.array(returns), [0.1, 0.2]) is None


# deflated


@pytest.mark.parametrize("trials", [5, 10, 100, 1_000])
def test_expected_maximum_is_that_of_so_many_normals(trials):
    rng = np.random.default_rng(0)
    maxima = 0.3 * rng.standard_normal((4_000, trials)).max(axis=1)
    assert expected_maximum(0.09, trials) == pytest.approx(maxima.mean(), rel=0.03)


def test_one_trial_expects_nothing():
    returns = np.random.default_rng(0).normal(0.1, 1, 300)
    assert expected_maximum(0.5, 1) == 0
    for trials in ([], [0.1], [None]):
        assert deflated_sharpe(returns, trials) == probabilistic_sharpe(returns)


def test_deflated_sharpe_by_hand():
    returns = np.random.default_rng(0).normal(0.1, 1, 300)
    trials = [0.02, 0.08, -0.04]
    deviation = 0.06  # of 0.02, 0.08, −0.04 about their mean 0.02
    usual, extreme = stats.norm.ppf([1 - 1 / 3, 1 - 1 / (3 * np.e)])
    best = deviation * ((1 - 0.5772156649) * usual + 0.5772156649 * extreme)
    wanted = probabilistic_sharpe(returns, best)
    assert deflated_sharpe(returns, trials) == pytest.approx(wanted, rel=1e-9)
    assert deflated_sharpe(returns, trials) < probabilistic_sharpe(returns)


def test_trials_without_a_sharpe_ratio_count():
    returns = np.random.default_rng(0).normal(0.1, 1, 300)
    some = deflated_sharpe(returns, [0.02, 0.08, -0.04])
    assert deflated_sharpe(returns, [0.02, 0.08, -0.04, None, None]) < some
    assert deflated_sharpe(returns, [0.02, None]) is None  # one has no variance
    assert deflated_sharpe(returns, [None, None]) is None


def test_the_best_of_many_worthless_trials_does_not_pass():
    rng = np.random.default_rng(0)
    plain, deflated = [], []
    for _ in range(200):
        trials = rng.standard_normal((50, 250))
        sharpes = session_sharpes(trials)
        best = trials[sharpes.argmax()]
        plain.append(probabilistic_sharpe(best))
        deflated.append(deflated_sharpe(best, list(sharpes)))
    assert np.mean(np.array(plain) > 0.95) > 0.8  # each looks like skill
    assert np.mean(np.array(deflated) > 0.95) < 0.05
    assert np.mean(deflated) == pytest.approx(0.5, abs=0.1)


# overfitting


def slow_pbo(performance, blocks):
    members, sessions = performance.shape
    bounds = [sessions * k // blocks for k in range(blocks + 1)]
    parts = [range(*pair) for pair in itertools.pairwise(bounds)]
    below = []
    for inside in itertools.combinations(range(blocks), blocks // 2):
        train = [t for k in inside for t in parts[k]]
        test = [t for k in range(blocks) if k not in inside for t in parts[k]]
        chosen = session_sharpes(performance[:, train]).argmax()
        rank = stats.rankdata(session_sharpes(performance[:, test]))[chosen]
        omega = rank / (members + 1)
        below.append(np.log(omega / (1 - omega)) <= 0)
    return np.mean(below)


@pytest.mark.parametrize(
    ("members", "sessions", "blocks"), [(8, 8, 4), (9, 15, 6), (20, 21, 10), (12, 26, 12)]
)
def test_pbo_against_slow_loops(members, sessions, blocks):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        performance = rng.standard_normal((members, sessions)) / 100
        performance[0] = 0  # never trades
        performance[1, : sessions // 2] = 0
        assert pbo(performance) == pytest.approx(slow_pbo(performance, blocks), abs=1e-12)


def test_sixteen_blocks_are_the_most():
    performance = np.random.default_rng(0).standard_normal((8, 250)) / 100
    assert pbo(performance) == pytest.approx(slow_pbo(performance, 16), abs=1e-12)


def test_choosing_among_noise_gains_nothing():
    rng = np.random.default_rng(0)
    found = [pbo(rng.standard_normal((20, 20))) for _ in range(500)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)
    # members that share their sum: who is ahead on one half is behind on the other
    noise = rng.standard_normal((20, 256))
    assert pbo(noise - noise.mean(axis=1, keepdims=True)) > 0.9


def test_a_member_that_is_better_is_found():
    rng = np.random.default_rng(0)
    performance = rng.standard_normal((20, 500))
    performance[7] += 0.3
    assert pbo(performance) < 0.02
    # no matter how large its account is
    performance[7] *= 100
    assert pbo(performance) < 0.02


def test_no_pbo_without_members_sessions_or_moves():
    rng = np.random.default_rng(0)
    assert pbo(rng.standard_normal((7, 100))) is None
    assert pbo(rng.standard_normal((8, 100))) is not None
    assert pbo(rng.standard_normal((8, 7))) is None
    assert pbo(rng.standard_normal((8, 8))) is not None
    assert pbo(np.zeros((8, 100))) is None
    assert pbo(np.zeros((0, 0))) is None
