"""Splits: at session borders, nothing in two of them, a session at least in each."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from gm_jax.errors import UserError
from gm_jax.market import synthetic
from gm_jax.market.split import clean_runs, folds, segments, session_starts, split_bars
from gm_jax.settings import Settings


def week(sessions):
    return synthetic.generate("planted", bars=sessions * 276, minutes=5, seed=0).bars


@pytest.mark.parametrize("sessions", [5, 6, 9, 40])
@pytest.mark.parametrize("shares", [(0.7, 0.15, 0.15), (0.4, 0.1, 0.5), (0.01, 0.01, 0.98)])
def test_parts_are_whole_sessions_apart_by_the_embargo(sessions, shares):
    bars, borders = week(sessions), {*session_starts(week(sessions)), sessions * 276}
    split = split_bars(bars, Settings(split=shares), warmup=112)
    assert split.train[0] == 112
    assert split.train[1] + 20 in borders
    assert {*split.validation, *split.test} <= borders
    assert split.test[1] == len(bars)
    for earlier, later in ((split.train, split.validation), (split.validation, split.test)):
        assert later[0] - earlier[1] >= 276  # one session is left out between them
        assert later[1] - later[0] >= 276


def test_too_few_sessions_or_bars_are_refused():
    with pytest.raises(UserError, match="Found 4 sessions"):
        split_bars(week(4), Settings(), warmup=112)
    with pytest.raises(UserError, match="purge_bars"):
        split_bars(week(6), Settings(purge_bars=5_000), warmup=112)


# walking forward


SHARES = [(0.7, 0.15, 0.15), (0.4, 0.1, 0.5), (0.01, 0.98, 0.01)]


@pytest.mark.parametrize(("sessions", "count"), [(18, 2), (20, 2), (39, 5), (99, 14)])
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("embargo", [0, 1, 2])
def test_folds_by_sessions(sessions, count, shares, embargo):
    """Every border of every fold, counted in sessions from the end of the history."""
    bars, settings = week(sessions), Settings(split=shares, embargo_sessions=embargo)
    found = folds(bars, settings, warmup=112, count=count)
    size = sessions // (count + 1)
    assert len(found) == count
    for k, fold in enumerate(found):
        first_test = sessions - (count - k) * size
        assert fold.test == (first_test * 276, (first_test + size) * 276)
        assert fold.validation[1] == (first_test - embargo) * 276
        assert fold.train[0] == 112
        train = (fold.train[1] + settings.purge_bars) / 276
        validation = [edge / 276 for edge in fold.validation]
        assert train.is_integer() and validation[0].is_integer() and train >= 1
        assert validation[0] - train == embargo
        assert validation[1] - validation[0] >= 1
        share = shares[1] / (shares[0] + shares[1])
        usable = first_test - 2 * embargo
        expected = np.clip(share * usable, 1, usable - 1)
        assert abs(validation[1] - validation[0] - expected) <= 0.5


def test_folds_expand_and_their_tests_adjoin_to_the_end():
    bars = week(43)[: 43 * 276 - 17]  # the last session is cut short
    found = folds(bars, Settings(), warmup=300, count=5)
    for a, b in pairwise(found):
        assert a.test[1] == b.test[0]
        assert a.train[0] == b.train[0] == 300
        assert a.train[1] < b.train[1] and a.validation[1] < b.validation[1]
    assert found[-1].test[1] == len(bars)
    tested = np.concatenate([np.arange(*fold.test) for fold in found])
    np.testing.assert_array_equal(tested, np.arange(found[0].test[0], len(bars)))
    for fold in found:
        assert fold.train[0] < fold.train[1] < fold.validation[0] < fold.validation[1]
        assert fold.validation[1] + 276 == fold.test[0]
        assert fold["all"] == (300, fold.test[1])


def test_folds_as_scikit_learn_cuts_them():
    """TimeSeriesSplit(n_splits=3) of 11 samples: tests (5, 6), (7, 8), (9, 10)."""
    found = folds(week(11), Settings(embargo_sessions=0), warmup=0, count=3)
    tests = [tuple(edge // 276 for edge in fold.test) for fold in found]
    assert tests == [(5, 7), (7, 9), (9, 11)]


def test_a_session_lost_to_warm_up_is_no_session():
    whole = folds(week(20), Settings(), warmup=2 * 276, count=2)
    part = folds(week(20), Settings(), warmup=2 * 276 - 1, count=2)
    assert whole[0].test[0] == (20 - 2 * 6) * 276  # 18 sessions, 6 in a block
    assert whole[0].train[0] == 2 * 276
    assert part[0].train[0] == 2 * 276 - 1  # one bar of the second session is left: 19 of them
    assert part[0].test == whole[0].test


def test_sessions_of_unequal_length_are_cut_at_their_own_borders():
    bars = week(30)
    kept = np.random.default_rng(0).random(len(bars)) < 0.6
    columns = ("time", "open", "high", "low", "close", "volume", "session", "hole", "roll")
    bars = replace(bars, **{name: getattr(bars, name)[kept] for name in columns})
    borders = {*session_starts(bars).tolist(), len(bars)}
    for fold in folds(bars, Settings(purge_bars=3), warmup=50, count=4):
        assert {fold.train[1] + 3, *fold.validation, *fold.test} <= borders


def test_folds_that_cannot_be_are_refused():
    for count in (-1, 0, 1, 51):
        with pytest.raises(UserError, match=f"Found {count} folds, expected .* from 2 to 50"):
            folds(week(12), Settings(), warmup=112, count=count)
    message = "Found 11 sessions after 112 bars of warm-up, expected at least 12 for 2 folds"
    with pytest.raises(UserError, match=message):
        folds(week(11), Settings(), warmup=112, count=2)
    with pytest.raises(UserError, match=r"Found 12 sessions .* at least 16 for 3 folds \(4 in"):
        folds(week(12), Settings(), warmup=112, count=3)
    with pytest.raises(UserError, match="Found 0 sessions"):
        folds(week(12), Settings(), warmup=12 * 276, count=2)
    with pytest.raises(UserError, match="purge_bars"):
        folds(week(12), Settings(purge_bars=276), warmup=112, count=2)
    assert len(folds(week(12), Settings(), warmup=112, count=2)) == 2
    assert len(folds(week(102), Settings(embargo_sessions=0), warmup=112, count=50)) == 50


# what else splits need


def test_clean_runs_against_a_loop():
    rng = np.random.default_rng(0)
    broken, bars = rng.random(300) < 0.05, week(2)[:300]
    object.__setattr__(bars, "hole", broken)
    runs = clean_runs(bars, (40, 260))
    for t in range(300):
        steps = -1
        while 40 <= t < 260 and t + steps + 1 < 260 and not (steps >= 0 and broken[t + steps + 1]):
            steps += 1
        assert runs[t] == steps


def test_segments_cover_the_sessions_of_a_span():
    bars = week(10)
    first, steps = segments(bars, (276, 9 * 276), most=3)
    assert first.tolist() == [276, 4 * 276, 7 * 276]
    assert (first + steps + 1).tolist() == [4 * 276, 7 * 276, 9 * 276]
