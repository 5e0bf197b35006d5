"""Row by row: what is refused, dropped or rounded. Prices are never filled in.

Each function takes a frame with `time` (datetime64[ns], UTC) and the five values, indexed by line
of the file, and returns the frame that remains and how many rows it touched.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market.calendar import MINUTE, closed
from gm_jax.market.reading import PRICES, VALUES
from gm_jax.market.timestamps import MAX_BAD
from gm_jax.market.zones import MAX_CLOSED


MAX_JUMP, NOTED_JUMP = 0.20, 0.03  # of one bar, relative to the close before it
LONG_HOLE = pd.Timedelta(days=7)  # in which prices may go further
_MAX_TICKS = 2**24  # float32 holds every whole number up to here
_MAX_VOLUME = 1e12  # contracts


def drop_bad_rows(
    frame: pd.DataFrame, minutes: int, newest: int = 0
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Drop rows that cannot be bars, at most 1 % of all; return the count of each fault.

    Raises:
        UserError: more than 1 % are bad, or any of the `newest` rows.
    """
    values = frame[list(VALUES)].to_numpy()
    prices, volume = values[:, :4], values[:, 4]
    time = frame["time"].to_numpy()
    faults = {
        "no such time": np.isnat(time),
        f"off the {minutes}-minute grid": time.astype(np.int64) % (minutes * MINUTE) != 0,
        "not a number": ~np.isfinite(values).all(axis=1),
        "price of 0 or less": (prices <= 0).any(axis=1),
        "negative volume": volume < 0,
        f"volume above {_MAX_VOLUME:g}": volume > _MAX_VOLUME,
        "High or Low not bounding": (prices.max(axis=1) > prices[:, 1])
        | (prices.min(axis=1) < prices[:, 2]),
    }
    first_fault = np.argmax(list(faults.values()), axis=0)
    bad = np.any(list(faults.values()), axis=0)
    counts = {name: int((bad & (first_fault == i)).sum()) for i, name in enumerate(faults)}
    counts = {name: count for name, count in counts.items() if count}
    if bad.sum() > MAX_BAD * len(frame):
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        raise UserError(
            f"{bad.sum():,} of {len(frame):,} rows are bad ({listed}; {_lines(frame, bad)}). "
            "Expected at most 1 %: mend or remove them."
        )
    sure = time[~np.isnat(time)]
    age = np.arange(len(frame))[:: 1 if sure[:1] > sure[-1:] else -1]  # in rows, 0 is the newest
    late = bad & (age < newest)
    if late.any():
        names = [name for i, name in enumerate(faults) if (late & (first_fault == i)).any()]
        raise UserError(
            f"Of the newest {newest:,} bars {late.sum():,} are bad ({', '.join(names)}; "
            f"{_lines(frame, late)}). A decision rests on them: mend them, then ask again."
        )
    return frame[~bad], counts


def drop_closed(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Drop bars of the daily break and the weekend, at most 0.1 % of all.

    Raises:
        UserError: more than 0.1 % are there; the dates or the zone were misread or invented.
    """
    shut = closed(frame["time"].to_numpy().astype(np.int64))
    if shut.sum() > MAX_CLOSED * len(frame):
        raise UserError(
            f"{shut.sum():,} of {len(frame):,} bars lie in the 17:00-18:00 New York break or on a "
            f"weekend ({_lines(frame, shut)}); expected at most 0.1 %. Check --tz, --date-format "
            "and that stamps are bar opens; a 24-hour market takes --around-the-clock; until 18 "
            "September 2015 trading ended at 17:15: cut such history off."
        )
    return frame[~shut], int(shut.sum())


def drop_duplicates(frame: pd.DataFrame, repair: bool) -> tuple[pd.DataFrame, int]:
    """Drop repeated rows; where rows of one time differ, keep the first if `repair`.

    Raises:
        UserError: rows of one time differ and `repair` is False.
    """
    frame_once = frame[~frame.duplicated()]
    conflicting = frame_once.duplicated("time").to_numpy()
    if conflicting.any() and not repair:
        raise UserError(
            f"{conflicting.sum():,} rows repeat a time with other values "
            f"({_lines(frame_once, conflicting)}). Expected one row per time: mend them, or keep "
            "the first of each with --repair."
        )
    kept = frame_once[~conflicting]
    return kept, len(frame) - len(kept)


def sort(frame: pd.DataFrame, repair: bool) -> tuple[pd.DataFrame, int]:
    """Count the steps back in time and sort them away if `repair`.

    Raises:
        UserError: there are steps back and `repair` is False.
    """
    back = np.diff(frame["time"].to_numpy(), prepend=frame["time"].to_numpy()[:1]) < np.timedelta64(
        0
    )
    if back.any() and not repair:
        raise UserError(
            f"Time runs backward {back.sum():,} times ({_lines(frame, back)}). Expected the "
            "oldest bar first: sort the file, or have it sorted with --repair."
        )
    return frame.sort_values("time", kind="stable") if back.any() else frame, int(back.sum())


def round_to_ticks(frame: pd.DataFrame, tick: float) -> tuple[pd.DataFrame, int]:
    """Round prices to whole ticks; return how many rows were off.

    Raises:
        UserError: a price is too small or too large to be counted in ticks.
    """
    ticks = frame[list(PRICES)] / tick
    whole = ticks.round()
    beyond = ((whole < 1) | (whole >= _MAX_TICKS)).any(axis=1).to_numpy()
    if beyond.any():
        raise UserError(
            f"{beyond.sum():,} rows hold prices outside {tick} to {_MAX_TICKS * tick:,.0f} points "
            f"({_lines(frame, beyond)}). Expected index points: rescale the prices."
        )
    off = ((ticks - whole).abs() > 1e-6).any(axis=1)
    return frame.assign(**{name: whole[name] * tick for name in PRICES}), int(off.sum())


def count_jumps(frame: pd.DataFrame) -> int:
    """Return how many bars reach more than 3 % away from the close before them.

    Raises:
        UserError: a bar reaches more than 20 % away or, behind a hole of a week, a factor of 2.
    """
    before = frame["close"].shift().fillna(frame["open"])
    up, down = frame["high"] / before, frame["low"] / before
    reach = np.maximum(up.to_numpy() - 1, 1 - down.to_numpy())
    beyond = np.where(frame["time"].diff() > LONG_HOLE, (up > 2) | (down < 0.5), reach > MAX_JUMP)
    if beyond.any():
        raise UserError(
            f"{beyond.sum():,} bars reach more than 20 % away from the close before "
            f"({_lines(frame, beyond)}; up to {reach.max():.0%}). No such bar is possible: mend "
            "or remove these rows."
        )
    return int((reach > NOTED_JUMP).sum())


def _lines(frame: pd.DataFrame, rows: np.ndarray, most: int = 5) -> str:
    """Name the first of some rows, such as `lines 7, 9, 12, ...`."""
    numbers = frame.index[rows]
    listed = ", ".join(str(number) for number in numbers[:most])
    return f"{frame.index.name}{'s' if len(numbers) > 1 else ''} {listed}" + (
        ", ..." if len(numbers) > most else ""
    )
