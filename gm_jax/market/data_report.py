"""What a file of bars holds, and what was done about it: the result of `gm-jax data check`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np

from gm_jax.market.bars import Bars
from gm_jax.market.rolls import jumps


_MANY_EMPTY = 0.01  # share of bars without volume worth a note


class Roll(TypedDict):
    """A change of contract."""

    time: str  # ISO 8601, UTC, open of the first bar of the new contract
    jump: float  # log return from the last close to that open


@dataclass(frozen=True)
class DataReport:
    """What a file holds and what was done about it.

    Every line below the header is blank or a row, and every row read is a usable bar or counted:
    `rows_read = bars + thin_bars + duplicates + ohlc_errors`.
    """

    rows_read: int
    blank_lines: int
    bars: int  # usable: thin sessions are out
    thin_bars: int  # of thin sessions
    first: str  # ISO 8601, UTC, open of the first bar, thin sessions included
    last: str
    bar_minutes: int
    timezone: str
    date_format: str
    duplicates: int  # rows dropped
    out_of_order: int  # steps back in time that were sorted away
    zero_volume: int  # bars
    ohlc_errors: int  # rows dropped because they cannot be bars; `warnings` tells why
    off_tick: int  # rows rounded
    gaps: int  # holes inside sessions, thin sessions included
    session_breaks: int  # steps from one session to the next, thin sessions included
    sessions: int  # thin sessions included
    thin_sessions: int
    rolls: tuple[Roll, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report as plain data, ready for `json.dumps`."""
        return asdict(self) | {"rolls": list(self.rolls), "warnings": list(self.warnings)}


@dataclass
class Counts:
    """Rows touched on the way from the file to the bars."""

    faults: dict[str, int]  # dropped, by the reason why
    duplicates: int
    out_of_order: int
    off_tick: int
    jumps: int = 0


def report(
    whole: Bars,
    bars: Bars,
    counts: Counts,
    *,
    rows_read: int,
    blank_lines: int,
    timezone: str,
    date_format: str,
    notes: tuple[str, ...],
) -> DataReport:
    """Sum up a file.

    Args:
        whole: all bars of the file, thin sessions included.
        bars: the usable ones.
        counts: rows touched before that.
        rows_read: rows of the file.
        blank_lines: lines of the file that hold nothing.
        timezone: zone of the stamps.
        date_format: how they were read.
        notes: what reading the file gave cause to say.
    """
    breaks = np.diff(whole.session) != 0
    sessions = int(breaks.sum()) + 1
    jump = jumps(bars.open, bars.close)
    return DataReport(
        rows_read=rows_read,
        blank_lines=blank_lines,
        bars=len(bars),
        thin_bars=len(whole) - len(bars),
        first=iso(whole.time[0]),
        last=iso(whole.time[-1]),
        bar_minutes=whole.minutes,
        timezone=timezone,
        date_format=date_format,
        duplicates=counts.duplicates,
        out_of_order=counts.out_of_order,
        zero_volume=int((whole.volume == 0).sum()),
        ohlc_errors=sum(counts.faults.values()),
        off_tick=counts.off_tick,
        gaps=int((whole.hole[1:] & ~breaks).sum()),
        session_breaks=sessions - 1,
        sessions=sessions,
        thin_sessions=sessions - len(np.unique(bars.session)),
        rolls=tuple(
            Roll(time=iso(bars.time[t]), jump=float(jump[t])) for t in np.flatnonzero(bars.roll)
        ),
        warnings=(*notes, *_warnings(whole, bars, counts)),
    )


def iso(time_ns: np.int64 | int) -> str:
    """Return a time as ISO 8601 in UTC, such as `2023-11-19T23:00:00Z`."""
    return f"{np.datetime64(int(time_ns), 'ns').astype('datetime64[s]')}Z"


def _warnings(whole: Bars, bars: Bars, counts: Counts) -> list[str]:
    empty = int((bars.volume == 0).sum())
    between = int((bars.hole[1:] & (np.diff(bars.session) != 0)).sum())
    found = {
        **{f"rows dropped: {fault}": count for fault, count in counts.faults.items()},
        "rows dropped: repeated": counts.duplicates,
        "steps back in time sorted away": counts.out_of_order,
        "rows rounded to whole ticks": counts.off_tick,
        "bars of thin sessions left out": len(whole) - len(bars),
        "holes between sessions: bars or whole weekdays are missing": between,
        "bars reach more than 3 % away from the close before": counts.jumps,
        "bars have no volume, nothing is filled in them": empty
        if empty > _MANY_EMPTY * len(bars)
        else 0,
    }
    return [f"{count:,} {what}" for what, count in found.items() if count]
