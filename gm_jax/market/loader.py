"""Any CSV of bars -> clean `Bars` and a report of what was found; faults are refused or counted."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market import cleaning
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE, holes, session_of
from gm_jax.market.data_report import Counts, DataReport, report
from gm_jax.market.reading import VALUES, read
from gm_jax.market.rolls import jumps, rolls, thin_sessions
from gm_jax.market.timestamps import Stamps, parse
from gm_jax.market.zones import check_zone, infer_zone, to_utc


MIN_BARS = {5: 1_000, 30: 500}  # by length of a bar in minutes: what training needs


def load(
    source: str | Path | pd.DataFrame,
    minutes: int | None,
    *,
    date_format: str | None = None,
    tz: str | None = None,
    repair: bool = False,
    tick: float = 0.25,
    around_the_clock: bool = False,
    live: int = 0,
) -> tuple[Bars, DataReport]:
    """Read bars and make sure of them.

    Args:
        source: a CSV file (see `reading.read`), or a frame with the same columns.
        minutes: length of a bar; None takes the most common step.
        date_format: `day-first`, `month-first`, `year-first` or a strptime pattern; None finds out.
        tz: canonical name of the zone of the stamps; None finds out.
        repair: keep the first of conflicting rows and sort backward steps, instead of refusing.
        tick: points.
        around_the_clock: accept a market without the exchange's break and weekend; needs `tz`.
        live: how many of the newest bars a decision rests on now: none of these may be bad, and
            the last two sessions are kept, however little they have traded so far.

    Returns:
        The usable bars and the report on the whole file.

    Raises:
        UserError: the file is not what it should be; the message says how to mend it.
    """
    table = read(source)
    frame = table.frame
    stamps = parse(frame["time"], date_format)
    minutes = _bar_minutes(stamps.time, minutes, source)
    sure = np.isfinite(frame[list(VALUES)].to_numpy()).all(axis=1)  # rows that fill a grid are not
    frame["time"], zone, zone_notes = _in_utc(stamps, sure, minutes, tz, around_the_clock)
    clean, counts = _clean(frame, minutes, tick, repair, around_the_clock, live)

    whole = _bars(clean, minutes, tick, around_the_clock)
    thin = thin_sessions(whole.session, whole.volume)
    if live:
        thin &= whole.session < np.unique(whole.session)[-2:][0]
    bars = whole
    if thin.any():
        bars = _bars(clean[~thin], minutes, tick, around_the_clock)
        # What follows a thin session stands behind a hole, be it a holiday or not.
        kept = np.flatnonzero(~thin)
        bars = replace(bars, hole=bars.hole | (np.diff(kept, prepend=kept[0]) > 1))
    counts.jumps = cleaning.count_jumps(clean[~thin])

    return bars, report(
        whole,
        bars,
        counts,
        rows_read=len(frame),
        blank_lines=table.blank_lines,
        timezone=zone,
        date_format=stamps.layout,
        notes=(*table.notes, *stamps.notes, *zone_notes),
    )


def require_size(bars: Bars) -> None:
    """Make sure that there are enough bars to train on.

    Raises:
        UserError: fewer than 1,000 five-minute or 500 thirty-minute bars.
    """
    least = MIN_BARS[bars.minutes]
    if len(bars) < least:
        raise UserError(
            f"Found {len(bars):,} usable {bars.minutes}-minute bars; expected at least {least:,}: "
            "give a longer file."
        )


def _bar_minutes(time: np.ndarray, declared: int | None, source: str | Path | pd.DataFrame) -> int:
    """Return the length of a bar: the most common step, which must be the declared one."""
    moments = np.sort(time[~np.isnat(time)].astype(np.int64))
    steps, counts = np.unique(np.diff(moments), return_counts=True)
    steps, counts = steps[steps > 0], counts[steps > 0]
    if len(steps) == 0:
        raise UserError("Found fewer than two bars. Expected one row per bar, oldest first.")
    step, rest = divmod(int(steps[np.argmax(counts)]), MINUTE)
    if rest or step > 60 or 60 % step:
        raise UserError(
            f"The most common step is {step + rest / MINUTE:g} minutes; expected bars of 5 or 30 "
            "minutes (or another part of an hour): export such bars."
        )
    if declared is None or step == declared:
        return step
    if declared % step == 0:
        name = "FILE" if isinstance(source, pd.DataFrame) else shlex.quote(str(source))
        mend = f"make them by `gm-jax data resample {name} --minutes {declared} --out NEW.csv`"
    else:
        mend = f"give a file of {declared}-minute bars, longer ones cannot be cut into them"
    raise UserError(f"Found {step}-minute bars; expected {declared}-minute bars: {mend}.")


def _in_utc(
    stamps: Stamps, sure: np.ndarray, minutes: int, tz: str | None, around_the_clock: bool
) -> tuple[np.ndarray, str, list[str]]:
    """Return the stamps in UTC, [T] datetime64[ns], the zone they were in and what to note.

    What is not stated is found out from the rows that are `sure`, [T] bool.
    """
    if stamps.zone is not None:
        note = f"the stamps state their zone themselves; --tz {tz} is not used"
        return stamps.time, stamps.zone, [note] if tz else []
    if tz is not None:
        return to_utc(stamps.time, check_zone(tz)), tz, []
    if around_the_clock:
        raise UserError(
            "A market without a daily break does not show its zone: state it with --tz."
        )
    zone, notes = infer_zone(stamps.time[sure], minutes)
    return to_utc(stamps.time, zone), zone, notes


def _clean(
    frame: pd.DataFrame,
    minutes: int,
    tick: float,
    repair: bool,
    around_the_clock: bool,
    newest: int,
) -> tuple[pd.DataFrame, Counts]:
    """Refuse, drop, sort and round, in this order."""
    frame, faults = cleaning.drop_bad_rows(frame, minutes, newest)
    if not around_the_clock:
        frame, faults["outside trading hours"] = cleaning.drop_closed(frame)
    frame, duplicates = cleaning.drop_duplicates(frame, repair)
    frame, out_of_order = cleaning.sort(frame, repair)
    frame, off_tick = cleaning.round_to_ticks(frame, tick)
    return frame, Counts(faults, duplicates, out_of_order, off_tick)


def _bars(frame: pd.DataFrame, minutes: int, tick: float, around_the_clock: bool) -> Bars:
    time = frame["time"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    values = {name: frame[name].to_numpy(np.float64) for name in VALUES}
    session = session_of(time)
    if around_the_clock:
        hole = np.diff(time, prepend=time[0]) > minutes * MINUTE
    else:
        hole = holes(time, minutes)
    roll = rolls(jumps(values["open"], values["close"]), session, hole)
    return Bars(
        time=time, **values, session=session, hole=hole, roll=roll, minutes=minutes, tick=tick
    )
