"""Reading time stamps: one date order for the whole column, decided and never guessed.

Texts are grouped by their skeleton, the text with every digit replaced by 0. A file of a million
rows has a handful of skeletons; the grammar is matched against these, and the digits of all rows
that share one are read at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gm_jax.errors import UserError


ORDERS = ("year-first", "day-first", "month-first")
MAX_BAD = 0.01  # share of rows that may be bad
FIRST_DAY, END_DAY = np.datetime64("1970-01-02"), np.datetime64("2262-01-01")  # of stamps

_CLOCK = (
    r"(?:[T ,]+(?P<hour>0{1,2}):(?P<minute>00)(?::(?P<second>00)(?:\.(?P<fraction>0{1,9}))?)?"
    r"(?: ?(?P<half>[AaPp])[Mm])?)?"
)
_OFFSET = r"\s?(?P<offset>Z|UTC|(?P<sign>[+-])(?P<offset_hour>00):?(?P<offset_minute>00))?"
_GRAMMAR = [
    re.compile(rf"\s*{date}{clock}{_OFFSET}\s*")
    for date, clock in (
        (r"(?P<year>0000)(?P<by>[-/.])(?P<month>0{1,2})(?P=by)(?P<day>0{1,2})", _CLOCK),
        (r"(?P<left>0{1,2})(?P<by>[-/.])(?P<middle>0{1,2})(?P=by)(?P<year>0000)", _CLOCK),
        (
            r"(?P<year>0000)(?P<month>00)(?P<day>00)",
            r"(?:[T ]?(?P<hour>00):?(?P<minute>00)(?::?(?P<second>00))?)?",
        ),
    )
]
_EPOCH = re.compile(r"\s*(?P<epoch>0{10}(?:0{3}|0{6}|0{9})?)\s*")  # seconds, ms, us or ns
_LONGEST = 40  # characters; every stamp of the grammar is shorter, so a cut text is never one


@dataclass(frozen=True)
class Stamps:
    """T time stamps as read, before their zone is known."""

    time: np.ndarray  # [T] datetime64[ns], NaT where the text is no date
    layout: str  # one of ORDERS, `epoch`, `datetime`, or the pattern that was given
    zone: str | None  # the zone of `time` where the stamps state it, else None: a local clock
    notes: tuple[str, ...] = ()


def parse(column: pd.Series, date_format: str | None = None) -> Stamps:
    """Read a column of time stamps.

    A date order is proved by one field above 12 and holds for the whole column. Where nothing
    proves it, the order without Saturday bars and with the far shorter span is taken, and noted.

    Args:
        column: [T] texts, epoch integers or datetimes, indexed by line.
        date_format: one of ORDERS, a strptime pattern, or None to find out.

    Raises:
        UserError: the order is contradictory or cannot be decided, or over 1 % cannot be read.
    """
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return Stamps(_in_ns(column.dt.tz_convert("UTC").dt.tz_localize(None)), "datetime", "UTC")
    if pd.api.types.is_datetime64_dtype(column.dtype):
        return Stamps(_in_ns(column), "datetime", None)
    text = column.fillna("").astype(str)
    if date_format is None or date_format in ORDERS:
        stamps = _by_grammar(text, date_format)
    else:
        stamps = _by_pattern(text, date_format)
    _require_readable(text, stamps)
    return stamps


def _by_pattern(text: pd.Series, pattern: str) -> Stamps:
    aware = "%z" in pattern.lower()  # an offset or a zone's name
    try:
        time = pd.to_datetime(text, format=pattern, errors="coerce", utc=aware)
    except ValueError as error:
        raise UserError(
            f"--date-format {pattern!r} is no date pattern ({error}). Expected one of "
            f"{', '.join(ORDERS)} or a pattern such as '%d/%m/%Y %H:%M'."
        ) from error
    stated = isinstance(time.dtype, pd.DatetimeTZDtype)
    naive = time.dt.tz_convert("UTC").dt.tz_localize(None) if stated else time
    return Stamps(_in_ns(naive), pattern, "UTC" if stated else None)


def _in_ns(column: pd.Series) -> np.ndarray:
    """Return datetimes of any unit in ns, NaT outside the years that are believed."""
    time = column.to_numpy()
    believed = (time >= FIRST_DAY) & (time < END_DAY)
    return np.where(believed, time, np.datetime64("NaT")).astype("datetime64[ns]")


def _by_grammar(text: pd.Series, stated: str | None) -> Stamps:
    found = _fields(text)
    if np.mean(found["epoch"] > 0) > 0.5:
        return Stamps(_from_epoch(found["epoch"]), "epoch", "UTC")

    layout, notes = "year-first", list[str]()
    turned = found["left"] > 0  # the year stands last in these rows
    if turned.any():
        layout, notes = _date_order(found, turned, text, stated)
    elif stated not in (None, "year-first"):
        raise UserError(
            f"The dates are written year-first, for example {text.iloc[0]!r}, not {stated}: "
            "leave --date-format out."
        )
    time = _assemble(found, month_first=layout == "month-first")

    readable = ~np.isnat(time)
    aware = (found["aware"] > 0) & readable
    if aware.any() and not aware[readable].all():
        plain = text[~aware & readable]
        raise UserError(
            f"Some stamps carry a UTC offset, others, such as {plain.iloc[0]!r} in "
            f"{text.index.name} {plain.index[0]}, do not: write all of them in one way."
        )
    return Stamps(time, layout, "UTC" if aware.any() else None, tuple(notes))


def _fields(text: pd.Series) -> dict[str, np.ndarray]:
    """Return the numbers in each text by the name the grammar gives them, each [T] i64."""
    names = {name for pattern in (*_GRAMMAR, _EPOCH) for name in pattern.groupindex}
    found = {name: np.zeros(len(text), np.int64) for name in sorted(names | {"aware"})}
    width = max(1, min(_LONGEST, int(text.str.len().max())))
    codes = text.to_numpy(dtype=f"U{width}").view(np.uint32).reshape(-1, width)
    digits = codes - ord("0")
    skeleton = np.where(digits < 10, np.uint32(ord("0")), codes)
    group, skeletons = pd.factorize(skeleton.view(f"U{width}").ravel().astype(object))

    for number, shape in enumerate(skeletons):
        matches = (pattern.fullmatch(shape) for pattern in (*_GRAMMAR, _EPOCH))
        match = next(filter(None, matches), None)
        if match is None:
            continue
        rows = np.flatnonzero(group == number)
        for name, part in match.groupdict().items():
            if part and set(part) == {"0"}:
                start, stop = match.span(name)
                powers = 10 ** np.arange(stop - start, dtype=np.int64)[::-1]
                found[name][rows] = digits[rows, start:stop].astype(np.int64) @ powers
        _read_marks(found, rows, match.groupdict())
    return found


def _read_marks(
    found: dict[str, np.ndarray], rows: np.ndarray, part: dict[str, str | None]
) -> None:
    """Apply what is not a number in the stamps of one skeleton: AM or PM, decimals, the offset."""
    if part.get("half"):
        hour = found["hour"][rows]
        afternoon = 12 * (str(part["half"]).upper() == "P")
        found["hour"][rows] = np.where((hour >= 1) & (hour <= 12), hour % 12 + afternoon, 99)
    if part.get("fraction"):
        found["fraction"][rows] *= 10 ** (9 - len(str(part["fraction"])))
    if part.get("epoch"):
        found["epoch"][rows] *= 10 ** (19 - len(str(part["epoch"])))
    found["aware"][rows] = bool(part.get("offset"))
    if part.get("sign") == "-":
        found["offset_hour"][rows] *= -1
        found["offset_minute"][rows] *= -1


def _assemble(found: dict[str, np.ndarray], month_first: bool) -> np.ndarray:
    """Return the moments that the fields name, [T] datetime64[ns], NaT where there is none."""
    # A row has either month and day, or left and middle; the other two are 0.
    first, second = ("month", "day") if month_first else ("day", "month")
    part = {first: found[first] + found["left"], second: found[second] + found["middle"]}
    month, day = part["month"], part["day"]
    valid = (month >= 1) & (month <= 12) & (day >= 1)
    valid &= (found["hour"] < 24) & (found["minute"] < 60) & (found["second"] < 60)
    valid &= (np.abs(found["offset_hour"]) < 15) & (np.abs(found["offset_minute"]) < 60)

    months = np.where(valid, (found["year"] - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    date = months.astype("datetime64[D]") + (day - 1)
    valid &= date.astype("datetime64[M]") == months  # no 30th of February
    valid &= (date >= FIRST_DAY) & (date < END_DAY)
    date = np.where(valid, date, FIRST_DAY)
    minute = (found["hour"] - found["offset_hour"]) * 60 + found["minute"] - found["offset_minute"]
    clock = (minute * 60 + found["second"]) * 10**9 + found["fraction"]
    time = date.astype("datetime64[ns]") + clock.astype("timedelta64[ns]")
    return np.where(valid, time, np.datetime64("NaT", "ns"))


def _from_epoch(ns: np.ndarray) -> np.ndarray:
    time = ns.astype("datetime64[ns]")
    return np.where((ns > 0) & (time < END_DAY), time, np.datetime64("NaT", "ns"))


def _date_order(
    found: dict[str, np.ndarray], turned: np.ndarray, text: pd.Series, stated: str | None
) -> tuple[str, list[str]]:
    """Decide between day-first and month-first; return the order and what should be noted."""
    if stated == "year-first":
        raise UserError(
            f"The dates do not begin with the year, for example {text[turned].iloc[0]!r}: give "
            "--date-format day-first or --date-format month-first."
        )
    over = {"day-first": found["left"] > 12, "month-first": found["middle"] > 12}
    proof = {
        "day-first": over["day-first"] & ~over["month-first"],
        "month-first": over["month-first"] & ~over["day-first"],
    }
    proved = [order for order, rows in proof.items() if rows.any()]
    if len(proved) == 2 or (stated and proved and stated != proved[0]):
        lines = " and ".join(_example(text, proof[order], order) for order in proved)
        asked = f"--date-format asks for {stated}, but " if stated else ""
        raise UserError(
            f"{asked}{lines}. Expected one order in the whole column: mend those rows or give "
            "the order that all of them have."
        )
    if stated or proved:
        return stated or proved[0], []
    return _likelier_order(found, text[turned].iloc[0])


def _likelier_order(found: dict[str, np.ndarray], example: str) -> tuple[str, list[str]]:
    """Weigh two orders that are both possible: a market rests on Saturdays, a file is compact."""
    saturdays, span = {}, {}
    for order in ORDERS[1:]:
        time = _assemble(found, month_first=order == "month-first")
        time = time[~np.isnat(time)]
        days = time.astype("datetime64[D]")
        saturdays[order] = int(np.sum((days.astype(np.int64) + 3) % 7 == 5))
        span[order] = int(np.ptp(time.astype(np.int64))) if len(time) else 0

    evidence = {
        order: (saturdays[order] == 0 < saturdays[other]) + (3 * span[order] < span[other])
        for order, other in (ORDERS[1:], ORDERS[:0:-1])
    }
    clear = [order for order, weight in evidence.items() if weight]
    counts = " and ".join(f"{saturdays[order]} Saturday bars {order}" for order in ORDERS[1:])
    if len(clear) != 1:
        raise UserError(
            f"Cannot tell day from month in dates such as {example!r} ({counts}). State the order: "
            "--date-format day-first or --date-format month-first."
        )
    return clear[0], [
        f"no date proves the order of day and month; read {clear[0]} ({counts}); "
        "--date-format settles it"
    ]


def _require_readable(text: pd.Series, stamps: Stamps) -> None:
    bad = np.isnat(stamps.time)
    if bad.sum() > MAX_BAD * len(text):
        raise UserError(
            f"{bad.sum():,} of {len(text):,} time stamps cannot be read as {stamps.layout}: "
            f"{_example(text, bad)}. Expected for example '2024-01-31 18:00' or '31/01/2024 18:00';"
            f" state other forms with --date-format ({', '.join(ORDERS)} or '%d.%m.%y %H:%M')."
        )


def _example(text: pd.Series, rows: np.ndarray, what: str = "") -> str:
    """Name the first of some rows, such as `line 7 has '29/06/2020' (day-first)`."""
    first = text[rows]
    return f"{text.index.name} {first.index[0]} has {first.iloc[0]!r}{what and f' ({what})'}"
