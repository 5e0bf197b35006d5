"""Longer bars against pandas, against the generator's own, and through a file."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE, holes, minute_of_session, session_of
from gm_jax.market.loader import load
from gm_jax.market.resampling import resample
from gm_jax.market.synthetic import generate
from gm_jax.market.writing import write_csv


EXACT = (0, 0, 0)  # nothing partial, no contract mixed, no roll misread


def counts(bars: Bars, minutes: int) -> tuple[int, ...]:
    inexact = resample(bars, minutes)[1]
    return inexact.partial, inexact.past_roll, inexact.rolls


def same(one: Bars, other: Bars) -> None:
    for field in fields(Bars):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def days(first: str, last: str, minutes: int = 5) -> Bars:
    """Return bars of every full session from one trade date to another, with random prices."""
    dates = pd.bdate_range(first, last)
    opens = [
        pd.Timestamp(f"{d - pd.Timedelta('1D'):%F} 18:00", tz="America/New_York") for d in dates
    ]
    steps = np.arange(0, 1380, minutes) * MINUTE
    time = np.concatenate([o.tz_convert("UTC").as_unit("ns").value + steps for o in opens])
    random = np.random.default_rng(1)
    close = 15_000 + 0.25 * np.cumsum(random.integers(-9, 10, len(time)))
    open_ = np.r_[15_000, close[:-1]] + 0.25 * random.integers(-2, 3, len(time))
    return bars_of(
        time,
        open_,
        np.maximum(open_, close) + 0.25 * random.integers(0, 5, len(time)),
        np.minimum(open_, close) - 0.25 * random.integers(0, 5, len(time)),
        close,
        random.integers(1, 3_000, len(time)).astype(float),
        minutes,
    )


def bars_of(time: np.ndarray, *columns: np.ndarray | int) -> Bars:
    open_, high, low, close, volume, minutes = columns
    no = np.zeros(len(time), bool)
    hole = holes(time, minutes)
    return Bars(time, open_, high, low, close, volume, session_of(time), hole, no, minutes)


def without(bars: Bars, gone: np.ndarray) -> Bars:
    values = [getattr(bars, name)[~gone] for name in ("open", "high", "low", "close", "volume")]
    return bars_of(bars.time[~gone], *values, bars.minutes)


def by_pandas(bars: Bars, minutes: int) -> pd.DataFrame:
    """Return the aggregates of pandas, on a New York clock, from 18:00 on."""
    names = ("open", "high", "low", "close", "volume")
    index = pd.DatetimeIndex(bars.time.astype("datetime64[ns]"), tz="UTC")
    frame = pd.DataFrame({name: getattr(bars, name) for name in names}, index)
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    local = frame.tz_convert("America/New_York")
    grouped = local.resample(f"{minutes}min", label="left", closed="left", offset="18h")
    return grouped.agg(how).dropna()


@pytest.mark.parametrize("minutes", [5, 10, 15, 20, 30, 60])
def test_equals_pandas_with_holes_and_halts(minutes: int) -> None:
    bars = days("2021-03-01", "2021-03-26")  # across the change of clocks
    minute = minute_of_session(bars.time)
    halt = (minute >= 22 * 60 + 15) & (minute < 22 * 60 + 30)
    gone = halt | (np.random.default_rng(2).random(len(bars)) < 0.05)
    bars = without(bars, gone)
    longer, inexact = resample(bars, minutes)
    expected = by_pandas(bars, minutes)
    utc = expected.index.tz_convert("UTC").as_unit("ns")
    np.testing.assert_array_equal(longer.time, utc.asi8)
    for name in expected:
        np.testing.assert_array_equal(getattr(longer, name), expected[name])
    np.testing.assert_array_equal(longer.session, session_of(longer.time))
    np.testing.assert_array_equal(longer.hole, holes(longer.time, minutes))
    assert (longer.minutes, longer.roll.any()) == (minutes, False)
    # partial, counted by hand: fewer bars than the bucket holds outside the halt
    there = pd.Series(bars.time // (minutes * MINUTE)).value_counts()
    whole = pd.Series(days("2021-03-01", "2021-03-26").time[~halt] // (minutes * MINUTE))
    assert inexact.partial == (there < whole.value_counts()[there.index]).sum()


@pytest.mark.parametrize("seed", [0, 7])
def test_five_minutes_of_the_generator_make_its_thirty(seed: int) -> None:
    fine = generate("martingale", bars=276 * 300 + 6 * 7, minutes=5, seed=seed).bars
    coarse = generate("martingale", bars=46 * 300 + 7, minutes=30, seed=seed).bars
    longer, inexact = resample(fine, 30)
    same(longer, coarse)
    assert (inexact.partial, inexact.past_roll, inexact.rolls) == EXACT
    assert not inexact.warnings
    same(resample(resample(fine, 15)[0], 30)[0], coarse)
    same(resample(coarse, 30)[0], coarse)


def test_what_comes_later_changes_no_closed_bar() -> None:
    bars = days("2023-10-02", "2023-10-06")
    whole = resample(bars, 30)[0]
    for t in (6, 100, 333):
        head = resample(bars[:t], 30)[0]
        closed = bars.time[t - 1] + 5 * MINUTE >= head.time + 30 * MINUTE
        np.testing.assert_array_equal(head.close[closed], whole.close[: closed.sum()])
        assert len(head) - closed.sum() == (t % 6 > 0) == counts(bars[:t], 30)[0]


def test_half_days_and_the_halt_are_natural() -> None:
    bars = days("2020-11-23", "2020-11-27")  # Thanksgiving ends at 13:00, its morrow at 13:15
    minute, session = minute_of_session(bars.time), session_of(bars.time)
    day = session - session[0]
    gone = (minute >= 22 * 60 + 15) & (minute < 22 * 60 + 30)
    gone |= ((day == 3) & (minute >= 19 * 60)) | ((day == 4) & (minute >= 19 * 60 + 15))
    bars = without(bars, gone)
    longer, _ = resample(bars, 30)
    assert not longer.hole.any()
    # the file ends at 13:15, within a bar: nobody knows whether more is to come
    assert counts(bars, 30) == (1, 0, 0) and counts(bars, 15) == EXACT
    monday = without(days("2020-11-30", "2020-11-30"), np.zeros(276, bool))
    joined = bars_of(
        np.r_[bars.time, monday.time],
        *(
            np.r_[getattr(bars, name), getattr(monday, name)]
            for name in ("open", "high", "low", "close", "volume")
        ),
        5,
    )
    assert counts(joined, 30)[0] == 0


def test_a_bar_without_any_source_bar_is_a_hole() -> None:
    bars = days("2023-10-02", "2023-10-03")
    gone = np.zeros(len(bars), bool)
    gone[12:18] = True  # a whole half hour
    gone[40] = True  # within one
    longer, inexact = resample(without(bars, gone), 30)
    assert len(longer) == 91 and np.flatnonzero(longer.hole).tolist() == [2]
    assert inexact.partial == 1 and "1 bars lack some" in inexact.warnings[0]


def jumped(bars: Bars, at: int, jump: float) -> Bars:
    """Return bars whose contract changes before one of them."""
    factor = np.where(np.arange(len(bars)) >= at, 1 + jump, 1.0)
    prices = {
        name: np.rint(getattr(bars, name) * factor * 4) / 4
        for name in ("open", "high", "low", "close")
    }
    return replace(bars, **prices, roll=np.arange(len(bars)) == at)


def test_no_bar_mixes_two_contracts(tmp_path: Path) -> None:
    plain = days("2023-10-02", "2023-10-03")
    bars = jumped(plain, 75, 0.01)  # in the middle of the thirteenth half hour
    longer, inexact = resample(bars, 30)
    assert np.flatnonzero(longer.roll).tolist() == [13] and not longer.hole.any()
    old = resample(plain, 30)[0]
    assert longer.open[12] == old.open[12] and longer.close[12] == bars.close[74]
    assert longer.volume[12] == bars.volume[72:75].sum()
    assert longer.high[12] == bars.high[72:75].max() and longer.low[12] == bars.low[72:75].min()
    assert longer.open[13] == bars.open[78]
    assert (inexact.partial, inexact.past_roll, inexact.rolls) == (0, 3, 0)
    write_csv(longer, tmp_path / "bars.csv")
    same(load(tmp_path / "bars.csv", 30)[0], longer)


def by_loop(bars: Bars, minutes: int) -> list[tuple]:
    """Return (time, open, high, low, close, volume, roll) of each bar, one source bar at a time."""
    made: list[list] = []
    changed = False  # the contract, inside the bar that is being made
    for t in range(len(bars)):
        label = bars.time[t] - minute_of_session(bars.time)[t] % minutes * MINUTE
        if not made or made[-1][0] != label:
            roll = bool(bars.roll[t]) or changed
            changed = False
            made.append([label, bars.open[t], bars.high[t], bars.low[t], None, 0.0, roll])
        elif bars.roll[t]:
            changed = True
        if not changed:
            bar = made[-1]
            bar[2], bar[3] = max(bar[2], bars.high[t]), min(bar[3], bars.low[t])
            bar[4], bar[5] = bars.close[t], bar[5] + bars.volume[t]
    return [tuple(bar) for bar in made]


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_plain_loop_with_holes_and_rolls(seed: int) -> None:
    random = np.random.default_rng(seed)
    bars = days("2023-10-02", "2023-10-02")
    bars = without(bars, random.random(len(bars)) < 0.2)
    bars = replace(bars, roll=random.random(len(bars)) < 0.1)
    longer = resample(bars, 30)[0]
    names = ("time", "open", "high", "low", "close", "volume", "roll")
    columns = [getattr(longer, name).tolist() for name in names]
    assert list(zip(*columns, strict=True)) == by_loop(bars, 30)


def test_a_roll_between_bars_stands_between_the_longer_ones() -> None:
    bars = jumped(days("2023-10-02", "2023-10-03"), 72, -0.01)
    longer, inexact = resample(bars, 30)
    assert np.flatnonzero(longer.roll).tolist() == [12]
    assert longer.volume.sum() == bars.volume.sum()
    assert (inexact.partial, inexact.past_roll, inexact.rolls) == EXACT


def test_a_roll_that_the_file_will_not_show_is_told() -> None:
    bars = jumped(days("2023-10-02", "2023-10-03"), 72, 0.0)  # no jump to know it by
    inexact = resample(bars, 30)[1]
    assert inexact.rolls == 1 and "contract changes" in inexact.warnings[0]


@pytest.mark.parametrize("source", [5, 15])
def test_written_bars_read_back_the_same(tmp_path: Path, source: int) -> None:
    bars = days("2023-02-27", "2023-03-31", source)
    gone = np.random.default_rng(3).random(len(bars)) < 0.01
    longer = resample(without(bars, gone), 30)[0]
    write_csv(longer, tmp_path / "bars.csv")
    loaded, report = load(tmp_path / "bars.csv", 30)
    same(loaded, longer)
    assert not report.warnings


def test_market_around_the_clock(tmp_path: Path) -> None:
    """Every hour of two weeks with the change of clocks in between, back from UTC stamps."""
    time = pd.date_range("2023-10-28", periods=288 * 14, freq="5min").as_unit("ns").asi8
    gone = np.arange(len(time)) // 6 == 40
    frame = pd.DataFrame({"Date": pd.DatetimeIndex(time[~gone].astype("datetime64[ns]"))})
    price = 10_000 + 0.25 * (np.arange(len(frame)) % 7)
    frame = frame.assign(Open=price, High=price, Low=price, Close=price, Volume=1)
    bars, _ = load(frame, 5, tz="UTC", around_the_clock=True)
    longer, inexact = resample(bars, 30)
    assert len(longer) == 48 * 14 - 1 and np.flatnonzero(longer.hole).tolist() == [40]
    assert inexact.partial == 0
    write_csv(longer, tmp_path / "bars.csv")
    same(load(tmp_path / "bars.csv", 30, around_the_clock=True)[0], longer)


def test_a_thin_holiday_left_out_stays_a_hole() -> None:
    bars = days("2023-11-20", "2023-11-27")
    rest = without(bars, session_of(bars.time) == session_of(bars.time)[276 * 3])  # Thanksgiving
    behind = np.flatnonzero(np.diff(rest.session))[2] + 1
    assert not rest.hole.any()  # the calendar excuses it, the loader does not
    marked = replace(rest, hole=np.arange(len(rest)) == behind)
    assert np.flatnonzero(resample(marked, 30)[0].hole).tolist() == [behind // 6]


@pytest.mark.parametrize(
    ("source", "minutes"), [(5, 7), (5, 45), (5, 0), (5, -30), (5, 120), (30, 5), (15, 20)]
)
def test_lengths_that_do_not_fit_are_refused(source: int, minutes: int) -> None:
    with pytest.raises(UserError, match=f"to {minutes} minutes.*divides an hour: {source}"):
        resample(days("2023-10-02", "2023-10-02", source), minutes)


def test_real_five_minute_file(shared_data: Path, tmp_path: Path) -> None:
    bars = load(shared_data / "NQ - 5 min - ETH.csv", 5)[0]
    longer, inexact = resample(bars, 30)
    # two half days: 228 / 6 bars, 231 / 6 rounded up
    assert np.unique(longer.session, return_counts=True)[1].tolist() == [46, 46, 46, 38, 39, 46]
    assert (inexact.partial, inexact.past_roll, inexact.rolls) == EXACT
    expected = by_pandas(bars, 30)
    for name in expected:
        np.testing.assert_array_equal(getattr(longer, name), expected[name])
    write_csv(longer, tmp_path / "bars.csv")
    same(load(tmp_path / "bars.csv", 30)[0], longer)
