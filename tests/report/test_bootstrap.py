"""The stationary bootstrap keeps its law, and its intervals cover what they say."""

import numpy as np

from gm_jax.report.bootstrap import MEAN_BLOCK, interval, stationary_bootstrap


def test_blocks_run_on_around_the_end_and_have_the_stated_mean_length():
    rows = stationary_bootstrap(40, draws=4_000)
    assert rows.shape == (4_000, 40)
    runs_on = rows[:, 1:] == (rows[:, :-1] + 1) % 40
    # a new block begins with probability 1 / mean and goes on by chance in one of 40 cases
    expected = 1 - (1 / MEAN_BLOCK) * (1 - 1 / 40)
    assert abs(runs_on.mean() - expected) < 0.005
    frequency = np.bincount(rows.ravel(), minlength=40) / rows.size
    np.testing.assert_allclose(frequency, 1 / 40, rtol=0.05)


def test_a_seed_decides():
    np.testing.assert_array_equal(stationary_bootstrap(9), stationary_bootstrap(9))
    assert (stationary_bootstrap(9, seed=1) != stationary_bootstrap(9)).any()


def test_intervals_cover_the_mean_of_dependent_sessions():
    """An AR(1) of weak memory: about 95 in 100 intervals hold the true mean."""
    rng, covered, iid = np.random.default_rng(0), 0, 0
    for _ in range(150):
        noise = rng.standard_normal(260)
        x = np.zeros(260)
        for t in range(1, 260):
            x[t] = 0.3 * x[t - 1] + noise[t]
        x = x[60:]
        low, high = interval(lambda rows, x=x: x[rows].mean(axis=-1), len(x))
        covered += low < 0 < high
        iid += abs(x.mean()) < 1.96 * x.std(ddof=1) / len(x) ** 0.5
    assert 130 <= covered <= 148
    assert iid < covered  # what ignores the memory covers less


def test_no_interval_where_the_statistic_does_not_exist():
    assert interval(lambda rows: np.where(rows[:, 0] == 0, np.nan, 1.0), 30) is None
