"""`gm-jax data …` as a user meets it: hostile files above all."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gm_jax import cli
from gm_jax.market.loader import load
from gm_jax.market.synthetic import generate
from gm_jax.market.writing import write_csv


@pytest.fixture
def run(capsys):
    def run(*arguments):
        """Return (status, stdout, stderr)."""
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


# --- hostile files ----------------------------------------------------------------------------

BARS = generate("martingale", bars=46 * 30, minutes=30, seed=1).bars  # 3 January 2000 on
FIRST = np.datetime64("1999-12-31").astype(np.int64)


def frame(first: int = 0, sessions: int = 30) -> pd.DataFrame:
    """Return sessions with New York stamps."""
    rows = slice(46 * first, 46 * (first + sessions))
    utc = pd.DatetimeIndex(BARS.time[rows].astype("datetime64[ns]"), tz="UTC")
    names = ("open", "high", "low", "close", "volume")
    values = {name.title(): getattr(BARS, name)[rows] for name in names}
    return pd.DataFrame({"Date": utc.tz_convert("America/New_York").tz_localize(None), **values})


def csv(table: pd.DataFrame, stamp: str = "%Y-%m-%d %H:%M:%S", **options) -> bytes:
    return table.to_csv(index=False, date_format=stamp, **options).encode()


def edited(line: int, column: str, value: object) -> bytes:
    """Return the file with one field changed; the header is line 1."""
    table = frame().astype(object)
    table.loc[line - 2, column] = value
    return csv(table)


def spoilt(column: str, value: object, share: float = 0.02) -> bytes:
    table = frame().astype(object)
    table.loc[: int(share * len(table)), column] = value
    return csv(table)


def misread() -> bytes:
    """Return a file whose day-first dates were read month-first, sorted and saved again."""
    table = frame()
    day_first = table["Date"].dt.strftime("%d/%m/%Y %H:%M")
    table["Date"] = pd.to_datetime(day_first, format="mixed")
    return csv(table.sort_values("Date"))


def around_the_clock() -> bytes:
    stamps = pd.date_range("2000-01-03", periods=len(BARS), freq="30min")
    return csv(frame().assign(Date=stamps))


def rows(*numbers: list[int]) -> bytes:
    """Return the file with its rows in another order."""
    return csv(frame().iloc[[n for part in numbers for n in part]])


GOOD = csv(frame())
LINES = GOOD.decode().splitlines()
HEAD = len(LINES[0]) + 1
SWAPPED = frame(first=3, sessions=2)  # 6 and 7 January
REPAIR, NEW_YORK = ["--repair"], ["--tz", "America/New_York"]

REFUSED = {
    "empty": (b"", [], "is empty", "Expected a header"),
    "blanks only": (b" \n\n \n", [], "is empty", "Expected a header"),
    "header alone": (GOOD[:HEAD], [], "a header but no rows", "one row per bar"),
    "header alone, cut": (GOOD[: HEAD - 1], [], "a header but no rows", "one row per bar"),
    "one line": (GOOD[: HEAD + len(LINES[1]) + 1], [], "fewer than two bars", "one row"),
    "no header": (GOOD[HEAD:], [], "Column missing: time, open", "expected a first line with"),
    "column missing": (csv(frame().drop(columns="Low")), [], "missing: low", "rename or add"),
    "column twice": (csv(frame().assign(close=1.0)), [], "'close' is not unique", "keep or rename"),
    "time twice": (csv(frame().assign(date=1)), [], "'date' is not unique", "keep or rename one"),
    "undecidable": (
        csv(frame(3, 1).iloc[12:], "%d/%m/%Y %H:%M").replace(b"06/01", b"06/06"),
        [],
        "Cannot tell day from month",
        "--date-format day-first or",
    ),
    "contradictory dates": (
        csv(frame(), "%d/%m/%Y %H:%M").replace(b"31/01/2000 10:00", b"01/31/2000 10:00"),
        [],
        "(month-first)",
        "Expected one order",
    ),
    "month-first denied": (
        csv(frame(), "%m/%d/%Y %H:%M"),
        ["--date-format", "day-first"],
        "asks for day-first, but",
        "give the order",
    ),
    "dates of another form": (
        csv(frame(), "%d %b %Y %H:%M"),
        [],
        "1,380 of 1,380 time stamps cannot be read",
        "--date-format",
    ),
    "misread and sorted": (misread(), [], "None of 16 time zones", "day and month may be"),
    "misread with a zone": (misread(), NEW_YORK, "on a weekend", "--date-format"),
    "24-hour": (around_the_clock(), [], "None of 16 time zones", "--around-the-clock"),
    "24-hour with a zone": (around_the_clock(), NEW_YORK, "break or on a", "--around-the-clock"),
    "24-hour without a zone": (
        around_the_clock(),
        ["--around-the-clock"],
        "does not show its zone",
        "state it with --tz",
    ),
    "no such zone": (GOOD, ["--tz", "New York"], "no time zone 'New York'", "America/New_York"),
    "many NaN": (spoilt("Close", np.nan), [], "28 of 1,380 rows are bad (28 not a", "mend or"),
    "many infinite": (spoilt("High", np.inf), [], "28 not a number; lines 2, 3", "at most 1 %"),
    "many negative": (spoilt("Volume", -1), [], "28 negative volume", "mend or remove"),
    "negative prices": (spoilt("Low", -100), [], "28 price of 0 or less", "mend or remove"),
    "high under low": (spoilt("High", 1), [], "28 High or Low not bounding", "mend or remove"),
    "conflict": (
        csv(pd.concat([frame(), frame().iloc[[700]].assign(Volume=7)])),
        [],
        "1 rows repeat a time with other values (line 1382)",
        "--repair",
    ),
    "unsorted": (
        rows([*range(50)], [*range(60, 70)], [*range(50, 60)], [*range(70, 1380)]),
        [],
        "Time runs backward 1 times (line 62)",
        "--repair",
    ),
    "newest first": (rows([*range(1379, -1, -1)]), [], "backward 1,379 times", "--repair"),
    "daily bars": (
        csv(frame().iloc[::46].assign(Date=pd.date_range("2000-01-03", periods=30))),
        [],
        "most common step is 1440 minutes",
        "expected bars of 5 or 30 minutes",
    ),
    "a jump": (edited(500, "High", 99_000), [], "more than 20 % away", "mend or remove"),
    "out of range": (edited(500, "High", 1e300), [], "outside 0.25 to 4,194,304", "rescale"),
    "thousands": (
        csv(frame(), float_format="%.2f", sep=";").replace(b";15", b";15,"),
        [],
        "line 2 has the number '15,",
        "without thousands separators",
    ),
    "thousands with decimal commas": (
        csv(frame(), float_format="%.2f", sep=";").replace(b".", b",").replace(b";15", b";15."),
        [],
        "line 2 has the number '15.",
        "without thousands separators",
    ),
    "thousands or decimals": (
        csv(frame().assign(Open="15,000", High="15,000", Low="15,000", Close="15,000"), sep="\t"),
        [],
        "line 2 has the number '15,000'",
        "12345,25 in the whole file",
    ),
    "both decimal marks": (
        csv(frame(), sep=";").replace(b"15008.0", b"15008,0", 1),
        [],
        "line 3 has the number '15008,0'",
        "decimal mark that not all",
    ),
    "a field too many": (
        GOOD.replace(LINES[9].encode(), LINES[9].encode() + b",1"),
        [],
        "line 10 has 7 fields, the header 6",
        "mend that line",
    ),
    "an open quote": (
        GOOD.replace(LINES[9].encode(), b'"' + LINES[9].encode()),
        [],
        "line 10 has a quote that is not closed",
        "mend that line",
    ),
    "lines between quotes": (
        GOOD.replace(b"\n", b'\n"', 10).replace(LINES[20].encode(), LINES[20].encode() + b'"'),
        [],
        "line 2 has a quote that is not closed",
        "mend that line",
    ),
    "NUL": (GOOD[:700] + b"\0" + GOOD[700:], [], "0x00, which is no UTF-8 text", "as UTF-8"),
    "Latin-1": (
        csv(frame().assign(Börse="CME")).decode().encode("latin-1"),
        [],
        "Line 1 of",
        "save or export the file as UTF-8",
    ),
    "half of UTF-16": (GOOD.decode().encode("utf-16")[:-1], [], "cut or damaged", "as UTF-8"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), [], "0x00", "as UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n", [], "0x89, which is no UTF-8 text", "as UTF-8"),
    "half of a gzip": (gzip.compress(GOOD)[:-900], [], "cut or damaged gzip", "fetch or pack"),
    "a broken gzip": (b"\x1f\x8b\x08" + GOOD, [], "damaged gzip", "fetch or pack"),
    "a workbook": (b"PK\x03\x04" + bytes(99), [], "a zip archive or an Excel", "export it so"),
    "a web page": (b"<!doctype html>\n<p>Sorry, not found\n", [], "Column missing", "first line"),
}


def one_message(err: str) -> bool:
    lines = err.splitlines()
    return 1 <= len(lines) <= 2 and lines[0].startswith("gm-jax: ") and len(err) < 500


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused_in_a_line_or_two(run, tmp_path, name):
    content, flags, found, mend = REFUSED[name]
    (tmp_path / "bars.csv").write_bytes(content)
    status, out, err = run("data", "check", tmp_path / "bars.csv", *flags)
    assert (status, out) == (2, "")
    assert one_message(err), err
    assert found in err
    assert mend in err


CUT = GOOD[: GOOD.rindex(b",")]  # in the middle of the last line: no volume
ACCEPTED = {
    "month-first": (csv(frame(), "%m/%d/%Y %H:%M"), [], 1_380, ()),
    "ambiguous": (csv(SWAPPED, "%m/%d/%Y %H:%M"), NEW_YORK, 92, ("no date proves the order",)),
    "cut between fields": (CUT, [], 1_379, ("no line end", "1 rows dropped: not a number")),
    "cut within the last number": (GOOD[:-2], [], 1_380, ("no line end",)),
    "some NaN": (spoilt("Close", np.nan, 0.005), [], 1_373, ("7 rows dropped: not a number",)),
    "some infinite": (edited(9, "High", "inf"), [], 1_379, ("1 rows dropped: not a number",)),
    "some negative": (edited(9, "Volume", -5), [], 1_379, ("dropped: negative volume",)),
    "repeated": (rows([*range(700)], [*range(690, 1_380)]), [], 1_380, ("10 rows dropped: re",)),
    "conflict, repaired": (REFUSED["conflict"][0], REPAIR, 1_380, ("1 rows dropped: repeated",)),
    "unsorted, repaired": (REFUSED["unsorted"][0], REPAIR, 1_380, ("1 steps back in time",)),
    "newest first, repaired": (REFUSED["newest first"][0], REPAIR, 1_380, ("1,379 steps back",)),
    "24-hour, asked for": (
        around_the_clock(),
        ["--around-the-clock", *NEW_YORK],
        1_380,
        (),
    ),
    "gzipped": (gzip.compress(GOOD), [], 1_380, ()),
    "semicolons": (csv(frame(), sep=";"), [], 1_380, ()),
    "decimal commas": (csv(frame(), sep=";", decimal=","), [], 1_380, ()),
    "quoted decimal commas": (csv(frame(), decimal=","), [], 1_380, ()),
    "tabs": (csv(frame(), sep="\t"), [], 1_380, ()),
    "pipes": (csv(frame(), sep="|"), [], 1_380, ()),
    "mark": (b"\xef\xbb\xbf" + GOOD, [], 1_380, ()),
    "UTF-16": (GOOD.decode().encode("utf-16"), [], 1_380, ()),
    "carriage returns": (GOOD.replace(b"\n", b"\r"), [], 1_380, ()),
    "quotes": (csv(frame(), quoting=1), [], 1_380, ()),
    "blank lines": (GOOD.replace(b"\n", b"\n\n"), [], 1_380, ()),
    "near miss": (GOOD.replace(b"Low", b"Llow"), [], 1_380, ("'llow' is taken for 'low'",)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_files_are_read_and_faults_are_told(run, tmp_path, name):
    content, flags, bars, warnings = ACCEPTED[name]
    (tmp_path / "bars.csv").write_bytes(content)
    status, out, _ = run("data", "check", tmp_path / "bars.csv", "--json", *flags)
    report = json.loads(out)
    assert (status, report["bars"]) == (0, bars)
    said = [warning for warning in report["warnings"] if "fit as well" not in warning]
    assert len(said) == len(warnings)
    assert all(part in warning for part, warning in zip(warnings, said, strict=True)), said


def test_places_that_hold_no_file(run, tmp_path, monkeypatch):
    (tmp_path / "bars.csv").write_bytes(GOOD)
    for arguments in (["data", "check"], ["train", "tactical", "--data"]):
        status, _, err = run(*arguments, tmp_path)
        assert (status, one_message(err), "is a directory; expected a CSV file" in err) == (2, 1, 1)
    status, _, err = run("data", "check", tmp_path / "none.csv")
    assert (status, one_message(err), "No file" in err) == (2, 1, 1)

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    status, _, err = run("data", "check", tmp_path / "bars.csv")
    assert (status, one_message(err), "cannot be read: Permission denied" in err) == (2, 1, 1)


@pytest.mark.parametrize("change", ["longer", "touched", "replaced"])
def test_a_file_that_changes_while_it_is_read(run, tmp_path, monkeypatch, change):
    path = tmp_path / "bars.csv"
    path.write_bytes(GOOD)
    read = Path.read_bytes

    def meanwhile(self):
        data = read(self)
        if change == "longer":
            path.write_bytes(GOOD + GOOD[-50:])
        elif change == "touched":
            os.utime(path, ns=(1, 1))
        else:
            path.unlink()
            path.write_bytes(GOOD.replace(b"15", b"16"))
        return data

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    status, _, err = run("data", "check", path)
    assert (status, one_message(err), "changed while it was read" in err) == (2, 1, 1)


def test_training_refuses_bars_of_another_length(run, tmp_path):
    path = tmp_path / "bars.csv"
    path.write_bytes(GOOD)
    status, _, err = run("train", "tactical", "--data", path)
    assert (status, one_message(err)) == (2, True)
    assert "Found 30-minute bars; expected 5-minute bars: give a file of 5-minute bars" in err
    stamps = pd.date_range("2000-01-02 18:00", periods=1_380, freq="1min")
    path.write_bytes(csv(frame().assign(Date=stamps)))
    status, _, err = run("train", "tactical", "--data", path, "--tz", "America/New_York")
    assert (status, one_message(err)) == (2, True)
    assert f"make them by `gm-jax data resample {path} --minutes 5 --out NEW.csv`" in err


# --- around the clock -------------------------------------------------------------------------


def test_flags_of_a_file_need_one(run):
    status, _, err = run("train", "tactical", "--around-the-clock")
    assert (status, "--around-the-clock describes a file" in err) == (2, True)


def test_around_the_clock_reaches_training(tmp_path):
    from gm_jax.run import source
    from gm_jax.settings import Settings

    stamps = pd.date_range("2000-01-03", periods=1_500, freq="5min")
    price = pd.Series(10_000 + 0.25 * (np.arange(1_500) % 40))
    table = pd.DataFrame({"Date": stamps, "Open": price, "High": price, "Low": price})
    table.assign(Close=price, Volume=9).to_csv(tmp_path / "bars.csv", index=False)
    where = source.Source(data=str(tmp_path / "bars.csv"), tz="UTC", around_the_clock=True)
    assert len(source.load(where, Settings(), 5).bars) == 1_500


# --- resample ---------------------------------------------------------------------------------


@pytest.fixture
def fine(tmp_path):
    world = generate("martingale", bars=276 * 10, minutes=5, seed=3)
    write_csv(world.bars, tmp_path / "fine.csv")
    return tmp_path / "fine.csv"


def test_refusal_of_a_length_names_the_command_that_mends_it(run, fine, tmp_path):
    """The hint, followed to the letter, gives bars that the refusing loader takes."""
    from gm_jax.errors import UserError

    with pytest.raises(UserError) as caught:
        load(fine, 30)
    command = str(caught.value).split("`")[1].replace("NEW.csv", str(tmp_path / "coarse.csv"))
    assert command.startswith("gm-jax data resample ")
    status, out, _ = run(*command.split()[1:])
    assert status == 0
    assert "460 bars of 30 minutes in" in out
    coarse = generate("martingale", bars=46 * 10, minutes=30, seed=3).bars
    np.testing.assert_array_equal(load(tmp_path / "coarse.csv", 30)[0].close, coarse.close)


def test_resample_prints_one_object_and_its_warnings(run, fine, tmp_path):
    kept = [line for n, line in enumerate(fine.read_text().splitlines()) if n not in (10, 11)]
    fine.write_text("\n".join(kept) + "\n")
    out = tmp_path / "coarse.csv.gz"
    status, printed, err = run("data", "resample", fine, "--minutes", 30, "--out", out, "--json")
    result = json.loads(printed)
    assert status == 0
    assert (result["bars"], result["bar_minutes"], result["source_bars"]) == (460, 30, 2758)
    assert (result["partial_bars"], result["bars_past_roll"], result["rolls_changed"]) == (1, 0, 0)
    assert result["warnings"] == [
        "1 bars lack some of their source bars: holes, or an end of the file"
    ]
    assert "warning: 1 bars lack" in err
    assert load(out, 30)[1].bars == 460


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--minutes", 7], "expected a multiple that divides an hour: 5, 10, 15, 20, 30, 60"),
        (["--minutes", 30, "--tz", "Mars"], "no time zone"),
        (["--minutes", 30, "--out", "no/such/folder/x.csv"], "Cannot write"),
        (["--minutes", "x"], "invalid int value"),
        ([], "--minutes"),
    ],
)
def test_resample_refuses_mistakes(run, fine, tmp_path, flags, said):
    status, out, err = run("data", "resample", fine, "--out", tmp_path / "x.csv", *flags)
    assert (status, out, one_message(err)) == (2, "", True)
    assert said in err
    assert not (tmp_path / "x.csv").exists()


def test_resample_does_not_replace_its_source(run, fine):
    before = fine.read_bytes()
    status, _, err = run("data", "resample", fine, "--minutes", 30, "--out", fine)
    assert (status, "is the file to read; name another" in err) == (2, True)
    assert fine.read_bytes() == before
