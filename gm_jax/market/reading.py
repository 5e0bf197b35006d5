"""From a file to six columns: header names, joined dates, numbers; no row is judged here."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from gm_jax.errors import UserError


PRICES = ("open", "high", "low", "close")
VALUES = (*PRICES, "volume")

_TIME_NAMES = ("datetime", "timestamp", "date", "time", "")  # the best name first
_ALIKE = 0.65  # similarity above which a header is taken for a slip of the pen: `vol`, `llow`


def read(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Read the columns that make bars.

    Header names are stripped of blanks and a byte order mark, and their case is folded. Columns
    Date and Time are joined. Other columns are ignored.

    Args:
        source: a CSV file, gzipped or not, or a frame, which is left untouched.

    Returns:
        A frame with `time` (text, or as the frame had it) and f64 `open`, `high`, `low`, `close`,
        `volume` (NaN where the text is no number), indexed by line of the file or row of the
        frame; and what should be noted.

    Raises:
        UserError: the file cannot be read, is empty, or lacks a column.
    """
    if isinstance(source, pd.DataFrame):
        raw, header = _from_frame(source)
    else:
        raw, header = _from_file(Path(source))
    if raw.empty:
        name = "The frame" if isinstance(source, pd.DataFrame) else source
        raise UserError(f"{name} holds a header but no rows. Expected one row per bar.")

    times, values, notes = _columns(header)
    raw = raw.set_axis(header, axis=1)
    time = raw[times[0]]
    if len(times) == 2:
        time = time.astype(str) + " " + raw[times[1]].astype(str)
    columns = {"time": time}
    for name, near in values.items():
        numbers = pd.to_numeric(raw[near], errors="coerce")  # NaN: refused or counted as a bad row
        columns[name] = numbers.astype(np.float64)
    return pd.DataFrame(columns), notes


def _from_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    if isinstance(frame.index, pd.DatetimeIndex):
        frame = frame.reset_index(names="datetime", allow_duplicates=True)
    frame = frame.set_axis(pd.RangeIndex(len(frame), name="row"), axis=0)
    return frame, [_fold(str(name)) for name in frame.columns]


def _from_file(path: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        # Two lines: pandas refuses a first row that is wider than the header.
        head = pd.read_csv(path, header=None, nrows=2, dtype=str)
        header = [_fold(name) for name in head.iloc[0].fillna("")]
        texts = {header.index(name): str for name in _time_columns(header)}
        raw = pd.read_csv(
            path,
            header=None,
            skiprows=1,
            names=range(len(header)),
            index_col=False,
            dtype=texts,
            low_memory=False,
            skip_blank_lines=False,  # so that row numbers are line numbers
        )
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}. Check the path.") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty. Expected a header and one row per bar.") from error
    except (pd.errors.ParserError, UnicodeDecodeError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is no readable CSV file ({str(error).strip()}). Expected UTF-8 text with "
            "commas, a point as decimal mark and as many fields in each line as in the header."
        ) from error
    raw.index = pd.RangeIndex(2, len(raw) + 2, name="line")
    return raw.dropna(how="all"), header


def _fold(name: str) -> str:
    return name.strip().casefold()  # pandas takes the byte order mark off


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
    times = _time_columns(header)
    values = {name: near for name in VALUES if (near := _match(name, header)) is not None}
    missing = [*([] if times else ["time"]), *(name for name in VALUES if name not in values)]
    if missing:
        raise UserError(
            f"Column missing: {', '.join(missing)}. Found {found}; expected Timestamp (or Date, "
            "Time, Datetime), Open, High, Low, Close, Volume between commas: rename or add it."
        )
    chosen = [*times, *values.values()]
    twice = [name for name in chosen if header.count(name) + chosen.count(name) > 2]
    if twice:
        raise UserError(f"Column {twice[0]!r} is not unique. Found {found}: keep or rename one.")

    taken = {near: name for name, near in values.items() if near != name}
    taken |= {near: "time" for near in times if near not in _TIME_NAMES}
    return times, values, [f"column {near!r} is taken for {name!r}" for near, name in taken.items()]
