"""The zone a file's clock stood in, found by where it puts the exchange's daily break."""

from __future__ import annotations

from difflib import get_close_matches
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np
import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market.calendar import closed, minute_of_session


ZONES = (
    "America/New_York",
    "America/Chicago",
    "UTC",
    "Europe/London",
    "Europe/Berlin",
    "Asia/Jerusalem",
    "Asia/Tokyo",
    "Europe/Helsinki",
    "Europe/Moscow",
    "Asia/Dubai",
    "Asia/Kolkata",
    "Asia/Singapore",
    "Australia/Sydney",
    "America/Denver",
    "America/Los_Angeles",
    "America/Sao_Paulo",
)
MAX_CLOSED = 0.001  # share of bars that may stand in the daily break or on a weekend

_HALF_HOUR = 30 * 60 * 10**9  # ns
_DAILY_BREAK = 3  # half hours from the last slot of a session to the first of the next
_MIN_OPENING = 0.5  # share of pauses that must end at 18:00 New York; holes pause a file too


def check_zone(name: str) -> str:
    """Return a canonical zone name unchanged.

    Raises:
        UserError: there is no such zone.
    """
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = get_close_matches(name, sorted(available_timezones()), 1)
        raise UserError(
            f"There is no time zone {name!r}. Expected a name such as "
            f"{near[0] if near else 'America/New_York'}: give it with --tz."
        ) from error
    return name


def to_utc(local: np.ndarray, zone: str) -> np.ndarray:
    """Convert what a clock in a zone showed to UTC.

    Args:
        local: [T] datetime64[ns], NaT allowed.
        zone: canonical name.

    Returns:
        [T] datetime64[ns], NaT where the clock skipped or repeated the hour.
    """
    index = pd.DatetimeIndex(local).tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    return index.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[ns]")


def infer_zone(local: np.ndarray, minutes: int) -> tuple[str, list[str]]:
    """Find the zone whose clock leaves the exchange's break empty and opens it at 18:00 New York.

    The zone with the fewest bars in the break wins, the first of ZONES among equals.

    Args:
        local: [T] datetime64[ns], what the clock showed, NaT allowed.
        minutes: length of a bar.

    Returns:
        The zone and what should be noted: the other zones that fit as well.

    Raises:
        UserError: no zone fits.
    """
    fits = _fitting(local)
    if not fits:
        if _fitting(local - np.timedelta64(minutes, "m")):
            raise UserError(
                "The stamps look like bar closes; expected the time a bar opens. Subtract "
                f"{minutes} minutes from each, or state the zone with --tz if they are opens."
            )
        raise UserError(
            f"None of {len(ZONES)} time zones leaves the exchange's 17:00-18:00 New York break "
            "empty and opens the market at 18:00. A daytime market needs --tz, a 24-hour one --tz "
            "and --around-the-clock; else mend the dates: day and month may be swapped."
        )
    zone, *others = fits
    notes = [f"read as {zone}, but {', '.join(others)} fit as well; --tz settles it"]
    return zone, notes if others else []


def _fitting(local: np.ndarray) -> list[str]:
    """Return the zones with the fewest closed bars, in the order of ZONES; none if all are bad."""
    # Every offset of the list is a multiple of 30 minutes: slots say as much as bars, but are few.
    slots, bars = np.unique(
        local[~np.isnat(local)].astype(np.int64) // _HALF_HOUR, return_counts=True
    )
    shut = {zone: _closed_bars(slots, bars, zone) for zone in ZONES}
    fewest = min(shut.values())
    if fewest > MAX_CLOSED * bars.sum():
        return []
    return [zone for zone in ZONES if shut[zone] == fewest]


def _closed_bars(slots: np.ndarray, bars: np.ndarray, zone: str) -> float:
    """Return how many bars the market was shut for, infinite if it does not open at 18:00."""
    utc = to_utc((slots * _HALF_HOUR).astype("datetime64[ns]"), zone)
    real = ~np.isnat(utc)
    time = utc[real].astype(np.int64)
    opening = minute_of_session(time)[1:][np.diff(time) >= _DAILY_BREAK * _HALF_HOUR]
    if len(opening) and np.mean(opening == 0) < _MIN_OPENING:
        return np.inf
    return float(bars[real][closed(time)].sum() + bars[~real].sum())
