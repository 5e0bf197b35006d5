"""From a file to six columns: header names, joined dates, numbers; no row is judged here."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market.files import read_text
from gm_jax.market.numbers import to_numbers


PRICES = ("open", "high", "low", "close")
VALUES = (*PRICES, "volume")

_SEPARATORS = ",;\t|"
_TIME_NAMES = ("datetime", "timestamp", "date", "time", "")  # the best name first
_ALIKE = 0.65  # similarity above which a header is taken for a slip of the pen: `vol`, `llow`
_SHOWN = 160  # characters of a header that is not understood


@dataclass(frozen=True)
class Table:
    """The rows of a file."""

    frame: pd.DataFrame  # `time` as it stands there, VALUES in f64; indexed by line or row
    blank_lines: int  # lines below the header that hold nothing
    notes: tuple[str, ...]


def read(source: str | Path | pd.DataFrame) -> Table:
    """Read the columns that make bars.

    Fields are parted by comma, semicolon, tab or `|`, whichever the header line has most of. Header
    names are stripped of blanks and angle brackets, their case is folded. Columns Date and Time are
    joined. Other columns are ignored. A value that is no number is NaN.

    Args:
        source: a CSV file, gzipped or not, or a frame, which is left untouched.

    Raises:
        UserError: the file cannot be read, is empty, or lacks a column.
    """
    if isinstance(source, pd.DataFrame):
        raw, header, notes = *_from_frame(source), list[str]()
        rows = raw
    else:
        raw, header, notes = _from_file(source)
        rows = raw.dropna(how="all")
    if rows.empty:
        name = "The frame" if isinstance(source, pd.DataFrame) else source
        raise UserError(f"{name} holds a header but no rows. Expected one row per bar.")

    times, values, slips = _columns(header)
    rows = rows.set_axis(header, axis=1)
    time = rows[times[0]]
    if len(times) == 2:
        time = time.astype(str) + " " + rows[times[1]].astype(str)
    numbers = to_numbers({name: rows[near] for name, near in values.items()})
    frame = pd.DataFrame({"time": time, **numbers}, index=rows.index)
    return Table(frame, len(raw) - len(rows), (*notes, *slips))


def _from_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    if isinstance(frame.index, pd.DatetimeIndex):
        frame = frame.reset_index(names="datetime", allow_duplicates=True)
    frame = frame.set_axis(pd.RangeIndex(len(frame), name="row"), axis=0)
    return frame, [_fold(str(name)) for name in frame.columns]


def _from_file(path: str | Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return a row for every line below the header, the header and what should be noted."""
    text = read_text(path)
    lines = io.BytesIO(text)
    first, second = lines.readline(), lines.readline()
    separator = max(_SEPARATORS, key=first.decode().count)
    try:
        header = [_fold(name) for name in _fields(first, separator)]
        _columns(header)  # before the whole file is read
        if len(_fields(second, separator)) > len(header):
            raise pd.errors.ParserError  # pandas would take the surplus for an index
        lines.seek(len(first))
        raw = _parsed(lines, separator, header) if second else pd.DataFrame(columns=header)
    except (pd.errors.ParserError, csv.Error) as error:
        raise UserError(_misfit(path, text, separator)) from error
    if second and len(raw) != text.count(b"\n", len(first)) + (not text.endswith(b"\n")):
        raise UserError(_misfit(path, text, separator))  # a quoted text holds line ends
    raw.index = pd.RangeIndex(2, len(raw) + 2, name="line")
    cut = "the last line has no line end: the file may have been cut short there"
    return raw, header, [] if text.endswith(b"\n") else [cut]


def _parsed(lines: io.BytesIO, separator: str, header: list[str]) -> pd.DataFrame:
    return pd.read_csv(
        lines,
        sep=separator,
        header=None,
        names=range(len(header)),
        index_col=False,
        dtype={header.index(name): str for name in _time_columns(header)},
        low_memory=False,
        skipinitialspace=True,
        skip_blank_lines=False,  # so that row numbers are line numbers
    )


def _fields(line: bytes, separator: str) -> list[str]:
    text = line.decode().removesuffix("\n")
    return next(csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True), [])


def _misfit(path: str | Path, text: bytes, separator: str) -> str:
    """Say which line does not fit the header."""
    width, reason = 0, "a quoted text runs over the end of a line"
    for number, line in enumerate(io.BytesIO(text), start=1):
        try:
            fields = len(_fields(line, separator))
        except csv.Error:
            reason = f"line {number} has a quote that is not closed, or text behind one"
            break
        width = width or fields
        if fields > width:
            reason = f"line {number} has {fields} fields, the header {width}"
            break
    return (
        f"{path} is no readable CSV file ({reason}). Expected one line per bar and no more fields "
        "in it than in the header: mend that line, or export the file again."
    )


def _fold(name: str) -> str:
    return name.strip().strip("<>").casefold()


def _match(name: str, header: list[str]) -> str | None:
    """Return the header that is a name or, failing that, nearly is one."""
    if name in header:
        return name
    spare = [other for other in header if other not in (*VALUES, *_TIME_NAMES)]
    return next(iter(get_close_matches(name, spare, 1, _ALIKE)), None)


def _time_columns(header: list[str]) -> list[str]:
    """Return the one column that holds the time, or Date and Time, or none."""
    exact = [name for name in _TIME_NAMES if name in header]
    if exact[:2] == ["date", "time"]:
        return exact[:2]
    near = (_match(name, header) for name in _TIME_NAMES[:-1])
    return exact[:1] or [name for name in near if name is not None][:1]


def _columns(header: list[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the header of the time (one or two columns) and of each value, and what to note."""
    found = ", ".join(repr(name) for name in header)
    found = f"{found[:_SHOWN]} …" if len(found) > _SHOWN else found or "an empty line"
    times = _time_columns(header)
    values = {name: near for name in VALUES if (near := _match(name, header)) is not None}
    missing = [*([] if times else ["time"]), *(name for name in VALUES if name not in values)]
    if missing:
        raise UserError(
            f"Column missing: {', '.join(missing)}. Found {found}; expected a first line with "
            "Timestamp (or Date, Time, Datetime), Open, High, Low, Close, Volume: rename or add it."
        )
    chosen = [*times, *values.values()]
    twice = [name for name in chosen if header.count(name) + chosen.count(name) > 2]
    if twice:
        raise UserError(f"Column {twice[0]!r} is not unique. Found {found}: keep or rename one.")

    taken = {near: name for name, near in values.items() if near != name}
    taken |= {near: "time" for near in times if near not in _TIME_NAMES}
    return times, values, [f"column {near!r} is taken for {name!r}" for near, name in taken.items()]
