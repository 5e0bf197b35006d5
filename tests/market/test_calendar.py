"""The calendar against published closing times and hand-made sequences of bars."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gm_jax.market.calendar import (
    closed,
    holes,
    minute_of_session,
    overdue,
    regular_hours,
    roll_session,
    session_of,
)


def ns(*new_york: str) -> np.ndarray:
    return pd.DatetimeIndex(new_york).tz_localize("America/New_York").as_unit("ns").asi8


def day(*dates: str) -> np.ndarray:
    return np.array(dates, "datetime64[D]").astype(np.int64)


def bars(start: str, end: str, minutes: int = 30) -> list[str]:
    """Return the opens from `start` up to but not including `end`, New York."""
    return [str(t) for t in pd.date_range(start, end, freq=f"{minutes}min", inclusive="left")]


@pytest.mark.parametrize(
    ("new_york", "session", "minute", "regular", "shut"),
    [
        ("2023-11-19 18:00", "2023-11-20", 0, False, False),
        ("2023-11-19 17:59", "2023-11-19", 1439, False, True),
        ("2023-11-20 09:29", "2023-11-20", 929, False, False),
        ("2023-11-20 09:30", "2023-11-20", 930, True, False),
        ("2023-11-20 15:59", "2023-11-20", 1319, True, False),
        ("2023-11-20 16:00", "2023-11-20", 1320, False, False),
        ("2023-11-20 16:59", "2023-11-20", 1379, False, False),
        ("2023-11-20 17:00", "2023-11-20", 1380, False, True),
        ("2023-11-24 18:00", "2023-11-25", 0, False, True),  # Friday evening
        ("2023-11-25 12:00", "2023-11-25", 1080, True, True),  # Saturday
        ("2023-03-12 18:00", "2023-03-13", 0, False, False),  # first evening of summer time
        ("2023-11-05 18:00", "2023-11-06", 0, False, False),
    ],
)
def test_clock(new_york: str, session: str, minute: int, regular: bool, shut: bool) -> None:
    time = ns(new_york)
    assert session_of(time) == day(session)
    assert minute_of_session(time) == minute
    assert regular_hours(time) == regular
    assert closed(time) == shut


FULL = bars("2023-02-05 18:00", "2023-02-06 17:00")
NEXT = bars("2023-02-06 18:00", "2023-02-07 17:00")


@pytest.mark.parametrize(
    ("opens", "expected"),
    [
        (FULL + NEXT, []),
        (FULL[:20] + FULL[21:], [20]),  # one bar lost inside
        (FULL[:-1] + NEXT, [45]),  # ended early on a normal day
        (FULL + NEXT[1:], [46]),  # began late
        (FULL + bars("2023-02-07 18:00", "2023-02-08 17:00"), [46]),  # a session lost
        # Presidents' Day 2023-02-20 ends at 13:00; Good Friday 2022-04-15 does not take place
        (bars("2023-02-19 18:00", "2023-02-20 13:00") + bars("2023-02-20 18:00", "2023-02-21"), []),
        (bars("2022-04-13 18:00", "2022-04-14 17:00") + bars("2022-04-17 18:00", "2022-04-18"), []),
        # ... but a bar missing between two bars of a half day is missing all the same
        (
            bars("2023-02-19 18:00", "2023-02-20") + bars("2023-02-20 00:30", "2023-02-20 13:00"),
            [12],
        ),
        # 2022-01-01 was a Saturday: 2021-12-31 was a full session and may not be absent
        (
            bars("2021-12-29 18:00", "2021-12-30 17:00") + bars("2022-01-02 18:00", "2022-01-03"),
            [46],
        ),
        # 2023-01-01 was a Sunday: Monday was closed
        (bars("2022-12-29 18:00", "2022-12-30 17:00") + bars("2023-01-02 18:00", "2023-01-03"), []),
    ],
)
def test_holes_of_thirty_minute_bars(opens: list[str], expected: list[int]) -> None:
    assert np.flatnonzero(holes(ns(*opens), 30)).tolist() == expected


@pytest.mark.parametrize(
    ("opens", "expected"),
    [
        (["2021-06-24 16:10", "2021-06-24 16:30"], [False, False]),
        (["2021-06-24 16:05", "2021-06-24 16:30"], [False, True]),
        (["2021-06-24 16:10", "2021-06-24 16:35"], [False, True]),
        (["2021-06-28 16:10", "2021-06-28 16:30"], [False, True]),
        (["2021-06-24 16:10", "2021-06-24 16:15", "2021-06-24 16:30"], [False] * 3),
    ],
)
def test_afternoon_halt_was_no_hole_before_it_was_abolished(
    opens: list[str], expected: list[bool]
) -> None:
    assert holes(ns(*opens), 5).tolist() == expected


# Early closes and closures as the exchange published them, and their neighbours.
SHORT = """2018-12-05 2019-07-03 2019-07-04 2019-11-29 2020-07-03 2021-07-05 2021-12-24 2022-06-20
    2022-07-04 2022-12-26 2024-03-29 2024-06-19 2024-11-29 2024-12-24 2025-01-09"""
FULL_DAYS = "2020-07-02 2021-06-18 2021-07-02 2021-12-31 2022-12-23 2023-10-09 2023-11-10"


@pytest.mark.parametrize(
    ("date", "short"),
    [(date, True) for date in SHORT.split()] + [(date, False) for date in FULL_DAYS.split()],
)
def test_only_a_short_day_may_end_at_one(date: str, short: bool) -> None:
    following = np.busday_offset(date, 1) - 1
    opens = bars(f"{np.datetime64(date) - 1} 18:00", f"{date} 13:00")
    assert holes(ns(*opens, f"{following} 18:00"), 30).tolist() == [False] * 38 + [not short]


def test_roll_sessions_are_the_tuesdays_of_expiry_weeks() -> None:
    days = np.arange(*day("2023-01-01", "2024-01-01"))
    assert (
        days[roll_session(days)].tolist()
        == day("2023-03-14", "2023-06-13", "2023-09-12", "2023-12-12").tolist()
    )


def test_bars_overdue_are_those_that_a_market_has_had():
    friday, sunday = ns("2023-10-20 16:30", "2023-10-22 12:00")
    assert overdue(friday, 30, sunday) == 0
    assert overdue(friday, 30, sunday, around_the_clock=True) == 86
    monday = ns("2023-10-23 10:00")[0]
    assert overdue(friday, 30, monday) == 32  # from Sunday 18:00 on
