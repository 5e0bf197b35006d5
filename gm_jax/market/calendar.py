"""The exchange's clock: sessions, trading hours, holidays, holes and expiries, in New York time.

A session opens at 18:00 New York and closes at 17:00 on the next calendar day, which is its trade
date. Sessions are numbered by that date as days since 1970.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from pandas.tseries.holiday import (
    GoodFriday,
    Holiday,
    USLaborDay,
    USMartinLutherKingJr,
    USMemorialDay,
    USPresidentsDay,
    USThanksgivingDay,
    nearest_workday,
    sunday_to_monday,
)
from pandas.tseries.offsets import Week


MINUTE = 60 * 10**9  # ns
SESSION_MINUTES = 23 * 60
REGULAR = ((9 + 6) * 60 + 30, (16 + 6) * 60)  # 09:30 and 16:00, in minutes since 18:00
NEW_YORK = "America/New_York"

_ZONE = ZoneInfo(NEW_YORK)
_MOST_OVERDUE = 10_000  # bars that are counted
_FEW = 4  # bars for which asking the zone one by one is quicker than pandas, by 100 times

_OPEN_TO_MIDNIGHT = 6 * 60 * MINUTE  # 18:00 to 24:00: adding it turns a clock into a trade date
_HALT = ((16 + 6) * 60 + 15, (16 + 6) * 60 + 30)  # 16:15 and 16:30, in minutes since 18:00
_HALT_ENDED = np.datetime64("2021-06-28").astype(np.int64)  # first session without the halt

# Closures and early ends that no rule foresees: hurricane Sandy and days of national mourning.
_UNSCHEDULED = ("2004-06-11", "2007-01-02", "2012-10-29", "2012-10-30", "2018-12-05", "2025-01-09")


# Trade dates on which the session may end early or not take place.
_SHORT_DAYS = (
    # New Year on a Saturday is not made up for: 2021-12-31 was a full session.
    Holiday("New Year", month=1, day=1, observance=sunday_to_monday),
    USMartinLutherKingJr,
    USPresidentsDay,
    GoodFriday,
    USMemorialDay,
    Holiday("Juneteenth", month=6, day=19, start_date="2022-01-01", observance=nearest_workday),
    Holiday("Day before Independence Day", month=7, day=3),
    Holiday("Independence Day", month=7, day=4, observance=nearest_workday),
    USLaborDay,
    USThanksgivingDay,
    # The fourth Thursday is the 22nd at the earliest: its morrow is the next Friday after that.
    Holiday("Day after Thanksgiving", month=11, day=22, offset=Week(weekday=4)),
    Holiday("Christmas Eve", month=12, day=24),
    Holiday("Christmas", month=12, day=25, observance=nearest_workday),
)


def session_of(time_ns: np.ndarray) -> np.ndarray:
    """Return the trade date of each bar, [T] i64, days since 1970.

    Args:
        time_ns: [T] i64, ns since 1970 UTC, bar open.
    """
    return (_clock(time_ns) + _OPEN_TO_MIDNIGHT) // (24 * 60 * MINUTE)


def minute_of_session(time_ns: np.ndarray) -> np.ndarray:
    """Return the minutes since 18:00 New York, [T] i64 in 0..1439; 1380 and more is the break.

    Args:
        time_ns: [T] i64, ns since 1970 UTC, bar open.
    """
    return (_clock(time_ns) + _OPEN_TO_MIDNIGHT) % (24 * 60 * MINUTE) // MINUTE


def minute_of_one(time_ns: int) -> int:
    """Return the minutes since 18:00 New York of one bar, see `minute_of_session`."""
    return (time_ns + _ahead(time_ns) + _OPEN_TO_MIDNIGHT) % (24 * 60 * MINUTE) // MINUTE


def regular_hours(time_ns: np.ndarray) -> np.ndarray:
    """Return whether each bar opens from 09:30 to before 16:00 New York, [T] bool."""
    minute = minute_of_session(time_ns)
    return (minute >= REGULAR[0]) & (minute < REGULAR[1])


def closed(time_ns: np.ndarray) -> np.ndarray:
    """Return whether the market is shut when a bar opens, [T] bool: daily break or weekend."""
    return (minute_of_session(time_ns) >= SESSION_MINUTES) | (_weekday(session_of(time_ns)) >= 5)


def holes(time_ns: np.ndarray, minutes: int) -> np.ndarray:
    """Return whether bars that should exist are missing between t-1 and t, [T] bool.

    Between two bars of one session nothing may be missing (the 16:15-16:30 halt was no trading
    time before 2021-06-28). Between two sessions the first must have run to 17:00, the second must
    begin at 18:00, and no weekday may lie between them; only holidays and half days may end early
    or be absent.

    Args:
        time_ns: [T] i64, ns since 1970 UTC, bar open, increasing.
        minutes: length of a bar.
    """
    session, start = session_of(time_ns), minute_of_session(time_ns)
    hole = np.zeros(len(time_ns), bool)
    before, after = session[:-1], session[1:]
    end, begin = start[:-1] + minutes, start[1:]

    inside = (before == after) & (begin - end > _halted(after, end, begin))

    short_days = _short_days()
    ended_early = (end < SESSION_MINUTES) & ~np.isin(before, short_days.astype(np.int64))
    absent = np.busday_count(_date(before + 1), _date(after), holidays=short_days) > 0
    across = (before != after) & (ended_early | (begin > 0) | absent)

    hole[1:] = inside | across
    return hole


def overdue(last_ns: int, minutes: int, now_ns: int, around_the_clock: bool = False) -> int:
    """Return how many bars have closed since one, days that may be short left out.

    Args:
        last_ns: ns since 1970 UTC, open of the bar.
        minutes: length of a bar.
        now_ns: ns since 1970 UTC.
        around_the_clock: of a market that is never shut.
    """
    step = minutes * MINUTE
    opens = np.arange(last_ns + step, now_ns - step + 1, step)[:_MOST_OVERDUE]
    if around_the_clock:
        return len(opens)
    opens = opens[~closed(opens)]
    return int((~np.isin(session_of(opens), _short_days().astype(np.int64))).sum())


def trading_minutes(time_ns: np.ndarray, minutes: int) -> np.ndarray:
    """Return the minutes from each time on that are no 16:15-16:30 halt, [T] i64.

    Args:
        time_ns: [T] i64, ns since 1970 UTC, inside sessions.
        minutes: how far to look.
    """
    start = minute_of_session(time_ns)
    return minutes - _halted(session_of(time_ns), start, start + minutes)


def roll_session(session: np.ndarray) -> np.ndarray:
    """Return whether a session is the Tuesday of an expiry week, [T] bool.

    The quarterly contracts expire on the third Friday of March, June, September and December.

    Args:
        session: [T] i64, trade date as days since 1970.
    """
    friday = session + 3
    month = _date(friday).astype("datetime64[M]")
    day = (_date(friday) - month.astype("datetime64[D]")).astype(np.int64) + 1
    quarterly = month.astype(np.int64) % 3 == 2  # months since January 1970
    return (_weekday(session) == 1) & quarterly & (day >= 15) & (day <= 21)


def _halted(session: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the minutes of the halt between two minutes of a session, [T] i64."""
    overlap = np.minimum(end, _HALT[1]) - np.maximum(start, _HALT[0])
    return np.where(session < _HALT_ENDED, np.maximum(overlap, 0), 0)


def _clock(time_ns: np.ndarray) -> np.ndarray:
    """Return what a New York clock shows, [T] i64, ns since 1970 there."""
    if len(time_ns) <= _FEW:
        return np.array([ns + _ahead(int(ns)) for ns in time_ns], np.int64)
    utc = pd.DatetimeIndex(time_ns.astype("datetime64[ns]"), tz="UTC")
    return utc.tz_convert(NEW_YORK).tz_localize(None).to_numpy().astype(np.int64)


def _ahead(time_ns: int) -> int:
    """Return how far a New York clock is ahead of UTC (it is behind: negative), ns."""
    seconds = datetime.fromtimestamp(time_ns // 10**9, _ZONE).utcoffset() or timedelta()
    return int(seconds.total_seconds()) * 10**9


def _date(session: np.ndarray) -> np.ndarray:
    return session.astype("datetime64[D]")


def _weekday(session: np.ndarray) -> np.ndarray:
    return (session + 3) % 7  # 1970-01-01 was a Thursday


@cache
def _short_days() -> np.ndarray:
    """Return the days from 1990 to 2050 that may be short or absent, [N] datetime64[D]."""
    scheduled = [rule.dates("1990-01-01", "2050-12-31", return_name=False) for rule in _SHORT_DAYS]
    days = [np.asarray(dates, "datetime64[D]") for dates in scheduled]
    return np.unique(np.concatenate([*days, np.array(_UNSCHEDULED, "datetime64[D]")]))
