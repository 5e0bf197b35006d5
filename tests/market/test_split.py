"""Splits: at session borders, nothing in two of them, a session at least in each."""

import numpy as np
import pytest

from gm_jax.errors import UserError
from gm_jax.market import synthetic
from gm_jax.market.split import clean_runs, segments, session_starts, split_bars
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
