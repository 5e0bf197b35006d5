"""Two thousand damaged files: refused in a line or two, or every line accounted for."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.loader import load
from gm_jax.market.synthetic import generate


TICK = 0.25
HEADER = ["Date", "Open", "High", "Low", "Close", "Volume"]
STAMPS = ("%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M %p")
OPTIONS = st.sampled_from(
    [
        *({}, {"repair": True}, {"tz": "America/New_York"}, {"tz": "UTC", "repair": True}),
        *({"tz": "UTC", "around_the_clock": True}, {"date_format": "day-first"}),
        *({"date_format": STAMPS[0], "repair": True}, {"date_format": STAMPS[1]}),
    ]
)

WORLD = generate("martingale", bars=5 * 46, minutes=30, seed=4).bars  # 3 to 7 January 2000
ROWS = len(WORLD)

Lines = list[list[str]]  # a file by line and field, header first


def lines_of(bars: Bars, stamp: str) -> Lines:
    moments = bars.time.astype("datetime64[ns]").astype("datetime64[s]") - np.timedelta64(5, "h")
    prices = np.stack([bars.open, bars.high, bars.low, bars.close], axis=1)
    rows = zip(moments.tolist(), prices.tolist(), bars.volume.tolist(), strict=True)
    return [HEADER] + [
        [moment.strftime(stamp), *(f"{price:.2f}" for price in four), f"{volume:.0f}"]
        for moment, four, volume in rows
    ]


VALID = {stamp: lines_of(WORLD, stamp) for stamp in STAMPS}


# mutations of lines and fields: (lines, place, column or count, content) -> lines


def edited(lines: Lines, at: int, edit: Callable[[list[str]], list[str]]) -> Lines:
    """Change the fields of one line."""
    return [edit(row) if row and i == at else row for i, row in enumerate(lines)]


def scaled(field: str, factor: str) -> str:
    try:
        return f"{float(field) * float(factor):.8g}"
    except ValueError:
        return field


def moved(stamp: str, minutes: str) -> str:
    for form in STAMPS:
        try:
            moment = datetime.strptime(stamp, form) + timedelta(minutes=int(minutes))
        except (ValueError, OverflowError):
            continue
        return moment.strftime(form)
    return stamp


TABLE: dict[str, Callable[[Lines, int, int, str], Lines]] = {
    "field": lambda lines, at, column, content: edited(
        lines, at, lambda row: [*row[:column], content, *row[column + 1 :]]
    ),
    "scale": lambda lines, at, column, content: edited(
        lines, at, lambda row: [scaled(x, content) if i == column else x for i, x in enumerate(row)]
    ),
    "turn": lambda lines, at, column, content: edited(
        lines, at, lambda row: [*row[column:], *row[:column]]
    ),
    "cut fields": lambda lines, at, count, content: edited(lines, at, lambda row: row[:count]),
    "shift": lambda lines, at, count, content: [
        [moved(row[0], content), *row[1:]] if row and at <= i < at + count else row
        for i, row in enumerate(lines)
    ],
    "insert": lambda lines, at, count, content: [*lines[:at], [content], *lines[at:]],
    "delete": lambda lines, at, count, content: [*lines[:at], *lines[at + count :]],
    "repeat": lambda lines, at, count, content: [*lines, *lines[at : at + count]],
    "echo": lambda lines, at, count, content: [*lines[: at + count], *lines[at:]],
    "move": lambda lines, at, count, content: [
        *lines[:at],
        *lines[at + count :],
        *lines[at : at + count],
    ],
    "reverse": lambda lines, at, count, content: [lines[0], *lines[:0:-1]] if lines else lines,
    "wider": lambda lines, at, count, content: [[*row, content] for row in lines],
}


# mutations of the whole text, and of bytes


def commas(text: str) -> str:
    return text.replace(",", ";").replace(".", ",")


TEXT: dict[str, Callable[[str], str]] = {
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "pipes": lambda text: text.replace(",", "|"),
    "blanks": lambda text: text.replace(",", " "),
    "decimal commas": commas,
    "thousands": lambda text: re.sub(r"\b(\d\d)(\d{3}\.\d\d)", r'"\1,\2"', text),
    "quotes": lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text),
    "carriage returns": lambda text: text.replace("\n", "\r"),
    "windows": lambda text: text.replace("\n", "\r\n"),
    "twice": lambda text: text + text,
    "blank lines": lambda text: text.replace("\n", "\n\n"),
    "mark": lambda text: "\ufeff" + text,
    "upper": str.upper,
    "near miss": lambda text: text.replace("Low", "Llow").replace("Volume", "Vol"),
    "no header": lambda text: text.partition("\n")[2],
}
BYTES: dict[str, Callable[[bytes, int, str], bytes]] = {
    "cut": lambda data, at, content: data[:-at],
    "lose": lambda data, at, content: data[:at] + data[at + len(content) :],
    "put": lambda data, at, content: data[:at] + content.encode() + data[at:],
    "over": lambda data, at, content: (
        data[:at] + content.encode() + data[at + len(content.encode()) :]
    ),
    "latin-1": lambda data, at, content: data[:at] + content.encode("latin-1", "replace"),
    "flip": lambda data, at, content: data[:at] + bytes(x ^ 1 for x in data[at : at + 1]),
    "utf-16": lambda data, at, content: data.decode(errors="replace").encode("utf-16"),
    "gzip": lambda data, at, content: gzip.compress(data, 1, mtime=0),
}

CONTENT = [
    *("", " ", "nan", "inf", "-inf", "0", "-1", "-0.25", "1e400", "1e-320", "1e13", "1e308"),
    *("15000,25", "15,000", "15.000,25", "15,000.25", "12 345", "0x10", "1_0", "True", "None"),
    *("99999999999999999999", "#N/A", "abc", "é", "\ufeff", "٣", '"', '"15000.25"', '"\n"', "''"),
    *("\x00", "\x1a", "\t", ",", ";", "|", ",,,,,", "\n", "\r", "\r\n", "\u2028", "\x0b", "\x1c"),
    *("1970-01-01 00:00", "9999-12-31 23:59", "2000-02-30 10:00", "13/13/2000 10:00", "946944000"),
    *("31/12/2000 10:00", "12/31/2000 10:00", "2000-01-04 10:00Z", "2000-01-04 10:00+99:99"),
    *("2000-01-04 25:00", "9466560000000000000", "2000-01-04 03:00:00.5", "15000.1", "+15000.25"),
    *("-1e0", "0.5", "0.97", "1.0001", "1.01", "1.1", "10", "1e6", "30", "-30", "1440", "-1440"),
    *("10080", "43200", "52560000", ",".join(HEADER), "nan,nan,nan,nan,nan,nan", "=1+1", "7" * 50),
]
MUTATION = st.one_of(
    st.tuples(
        st.sampled_from(["field", "scale", "turn", "cut fields"]),
        st.integers(0, ROWS),
        st.integers(0, 6),
        st.sampled_from(CONTENT) | st.text(max_size=8),
    ),
    st.tuples(
        st.sampled_from(sorted(TABLE)),
        st.integers(0, ROWS),
        st.integers(0, 60) | st.just(ROWS),
        st.sampled_from(CONTENT) | st.text(max_size=8),
    ),
    st.tuples(st.sampled_from(sorted(TEXT))),
    st.tuples(
        st.sampled_from(sorted(BYTES)),
        st.integers(1, 14_000),
        st.sampled_from(CONTENT) | st.text(max_size=8),
    ),
)


def build(stamp: str, mutations: list[tuple]) -> bytes:
    """Return the valid file with its mutations, fields first, bytes last."""
    lines = VALID[stamp]
    for what, *rest in mutations:
        lines = TABLE[what](lines, *rest) if what in TABLE else lines
    text = "".join(",".join(row) + "\n" for row in lines)
    for what, *_ in mutations:
        text = TEXT[what](text) if what in TEXT else text
    data = text.encode()
    for what, *rest in mutations:
        data = BYTES[what](data, *rest) if what in BYTES else data
    return data


def line_count(data: bytes) -> int:
    """Return the lines below the header."""
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
    pieces = re.split("\r\n|\r|\n", text)
    return len(pieces) - 1 - (not pieces[-1])


def check(path: Path, stamp: str, mutations: list[tuple], options: dict) -> bool:
    """Return whether the file is accepted; everything else about it is asserted."""
    data = build(stamp, mutations)
    path.write_bytes(data)
    try:
        bars, report = load(path, 30, **options)
    except UserError as error:
        assert 20 < len(str(error)) < 600 and str(error).isprintable()
        return False
    assert report.rows_read + report.blank_lines == line_count(data)
    accounted = report.bars + report.thin_bars + report.duplicates + report.ohlc_errors
    assert report.rows_read == accounted
    assert len(bars) == report.bars > 0 and bars.minutes == 30
    assert (np.diff(bars.time) > 0).all()
    prices = np.stack([bars.open, bars.high, bars.low, bars.close])
    assert np.isfinite(prices).all() and np.isfinite(bars.volume).all()
    assert (prices > 0).all() and (bars.volume >= 0).all()
    assert (prices.max(axis=0) == bars.high).all() and (prices.min(axis=0) == bars.low).all()
    assert (prices % TICK == 0).all()
    return True


FOUND = [  # each once broke the property
    (STAMPS[0], [("field", 70, 1, '"'), ("field", 90, 1, '"')], {}),  # 20 lines in one field
    (STAMPS[1], [("shift", 101, 4, "52560000"), ("lose", 5971, "\n")], {}),  # int64 overflow
]
ODD_BUT_GOOD = [  # each was refused for no good reason
    (STAMPS[0], [("field", 9, 0, "1700000000")], {}),  # one row is no proof of epochs
    (STAMPS[2], [("reverse", 0, 0, "")], {"repair": True}),  # newest first
]


@pytest.mark.slow
def test_refused_or_every_line_accounted_for(tmp_path: Path) -> None:
    accepted = []

    @settings(max_examples=2_000, derandomize=True, database=None, deadline=None)
    @given(st.sampled_from(STAMPS), st.lists(MUTATION, min_size=1, max_size=4), OPTIONS)
    def property_of(stamp: str, mutations: list[tuple], options: dict) -> None:
        accepted.append(check(tmp_path / "bars.csv", stamp, mutations, options))

    for found in FOUND:
        check(tmp_path / "bars.csv", *found)
    property_of()
    assert len(accepted) >= 2_000 and np.mean(accepted) > 0.25


@pytest.mark.parametrize(("stamp", "mutations", "options"), ODD_BUT_GOOD)
def test_odd_but_good(tmp_path: Path, stamp: str, mutations: list[tuple], options: dict) -> None:
    assert check(tmp_path / "bars.csv", stamp, mutations, options)


@pytest.mark.parametrize(
    "dress",
    [
        *(("semicolons",), ("tabs",), ("pipes",), ("decimal commas",), ("quotes",), ("mark",)),
        *(("carriage returns",), ("windows",), ("blank lines",), ("near miss",), ("upper",)),
        *(("utf-16", 0, ""), ("gzip", 0, "")),
    ],
)
@pytest.mark.parametrize("stamp", STAMPS)
def test_every_dress_holds_the_same_market(tmp_path: Path, stamp: str, dress: tuple) -> None:
    (tmp_path / "bars.csv").write_bytes(build(stamp, [dress]))
    bars, _ = load(tmp_path / "bars.csv", 30)
    for name in ("time", "open", "high", "low", "close", "volume", "hole", "roll"):
        np.testing.assert_array_equal(getattr(bars, name), getattr(WORLD, name))
