"""The loader on real files (figures counted by hand) and on one small file for every rule."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.data_report import DataReport
from gm_jax.market.loader import load, require_size
from gm_jax.market.timestamps import parse


DAY_FIRST = "%d/%m/%Y %H:%M"
KEYS = """rows_read blank_lines bars thin_bars first last bar_minutes timezone date_format
    duplicates out_of_order zero_volume ohlc_errors off_tick gaps session_breaks sessions
    thin_sessions rolls warnings"""


def market(
    start: str, sessions: int, minutes: int = 30, zone: str = "America/New_York"
) -> pd.DataFrame:
    """Return full sessions from a trade date on, stamped with the local clock of a zone."""
    opens = [
        pd.date_range(
            f"{day - pd.Timedelta('1D'):%F} 18:00", periods=1380 // minutes, freq=f"{minutes}min"
        )
        for day in pd.bdate_range(start, periods=sessions)
    ]
    time = pd.DatetimeIndex(np.concatenate(opens)).tz_localize("America/New_York")
    steps = np.random.default_rng(0).integers(-8, 9, len(time))
    close = 12_000 + 0.25 * np.cumsum(steps)
    open_ = np.r_[12_000, close[:-1]]
    return pd.DataFrame(
        {
            "Timestamp": time.tz_convert(zone).tz_localize(None),
            "Open": open_,
            "High": np.maximum(open_, close) + 1,
            "Low": np.minimum(open_, close) - 1,
            "Close": close,
            "Volume": 1_000 + np.arange(len(time)) % 50,
        }
    )


def text(frame: pd.DataFrame, date_format: str) -> pd.DataFrame:
    return frame.assign(Timestamp=frame["Timestamp"].dt.strftime(date_format))


@pytest.fixture
def week() -> pd.DataFrame:
    return market("2023-10-16", 5)  # 230 bars, no holiday, no expiry


@pytest.fixture
def save(tmp_path: Path) -> Callable[[pd.DataFrame | str], Path]:
    def save(content: pd.DataFrame | str) -> Path:
        path = tmp_path / "bars.csv"
        data = content if isinstance(content, str) else content.to_csv(index=False)
        path.write_text(data, encoding="utf-8")
        return path

    return save


def accounted(report: DataReport, thin_rows: int = 0) -> bool:
    rows = report.bars + report.thin_bars + report.duplicates + report.ohlc_errors
    return report.rows_read == rows and report.thin_bars == thin_rows


# --- real files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thirty(shared_data: Path) -> tuple[Bars, DataReport]:
    return load(shared_data / "NQ - 30 min - ETH.csv", 30)


def test_real_thirty_minute_report(thirty: tuple[Bars, DataReport]) -> None:
    found = thirty[1].to_json()
    rolls = found.pop("rolls")
    warnings = found.pop("warnings")
    assert found == {
        "rows_read": 40_822,
        "blank_lines": 0,
        "bars": 40_800,
        "thin_bars": 22,
        "first": "2020-06-28T22:00:00Z",
        "last": "2023-12-29T20:30:00Z",
        "bar_minutes": 30,
        "timezone": "Asia/Jerusalem",
        "date_format": "day-first",
        "duplicates": 0,
        "out_of_order": 0,
        "zero_volume": 12,
        "ohlc_errors": 0,
        "off_tick": 0,
        "gaps": 6,
        "session_breaks": 906,
        "sessions": 907,
        "thin_sessions": 13,
    }
    assert [(roll["time"], round(100 * roll["jump"], 2)) for roll in rolls] == [
        ("2022-06-13T22:00:00Z", 0.32),
        ("2022-09-12T22:00:00Z", 0.65),
        ("2022-12-12T23:00:00Z", 1.01),
        ("2023-03-13T04:00:00Z", 1.06),
        ("2023-06-12T22:00:00Z", 1.21),
        ("2023-09-11T22:00:00Z", 1.23),
    ]
    assert "22 bars of thin sessions left out" in warnings
    assert accounted(thirty[1], thin_rows=22)


def test_real_thirty_minute_bars(thirty: tuple[Bars, DataReport]) -> None:
    bars = thirty[0]
    assert (np.diff(bars.time) > 0).all()
    assert (bars.high == bars.low).sum() == 0  # the 21 of them are in the thin stretch
    # Both holes are lost data: 34 bars of 2020-07-10, and 34 of 2022-04-28 with all of 2022-04-29.
    after = bars.session[bars.hole].astype("datetime64[D]").astype(str).tolist()
    assert after == ["2020-07-13", "2022-05-02"]
    weekdays = np.arange(bars.session[0], bars.session[-1] + 1)
    weekdays = weekdays[np.is_busday(weekdays.astype("datetime64[D]"))]
    missing = np.setdiff1d(weekdays, bars.session).astype("datetime64[D]").astype(str)
    closed = "2020-12-25 2021-01-01 2021-12-24 2022-04-15 2022-12-26 2023-01-02"
    assert set(missing) == {*closed.split(), "2022-04-29"}


def test_real_five_minute_file(shared_data: Path) -> None:
    bars, report = load(shared_data / "NQ - 5 min - ETH.csv", None)
    assert (report.rows_read, report.bars, report.sessions) == (1_563, 1_563, 6)
    assert (report.timezone, report.bar_minutes) == ("America/New_York", 5)
    assert (report.first, report.last) == ("2023-11-19T23:00:00Z", "2023-11-27T21:55:00Z")
    assert np.unique(bars.session, return_counts=True)[1].tolist() == [276, 276, 276, 228, 231, 276]
    faults = ("duplicates", "out_of_order", "zero_volume", "ohlc_errors", "off_tick", "gaps")
    assert [getattr(report, fault) for fault in faults] == [0] * 6
    assert not bars.hole.any() and not bars.roll.any() and not report.warnings
    require_size(bars)


# --- header -----------------------------------------------------------------------------------


def renamed(frame: pd.DataFrame, names: dict[str, str]) -> str:
    return text(frame, DAY_FIRST).rename(columns=names).to_csv(index=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda week: "\ufeff" + renamed(week, {}).replace("Timestamp", '"Timestamp"'),
        lambda week: renamed(week, {"Timestamp": " DATE ", "Open": "open ", "Close": "CLOSE"}),
        lambda week: renamed(week, {"Timestamp": "Datetime"}),
        lambda week: renamed(week, {"Timestamp": "time"}),
        lambda week: renamed(week, {"Timestamp": ""}),
        lambda week: renamed(week.assign(Trades=1, Symbol="NQ"), {}),
        lambda week: renamed(week, {})[:-1].replace("\n", "\r\n") + "\r\n\r\n",
        lambda week: (
            week.assign(
                Date=week["Timestamp"].dt.strftime("%Y%m%d"),
                Time=week["Timestamp"].dt.strftime("%H%M%S"),
            )
            .drop(columns="Timestamp")
            .to_csv(index=False)
        ),
    ],
    ids=["bom", "fold", "datetime", "time", "empty", "extra", "crlf", "joined"],
)
def test_header_is_understood(
    week: pd.DataFrame, save: Callable, change: Callable[[pd.DataFrame], str]
) -> None:
    bars, report = load(save(change(week)), 30)
    assert bars.time[0] == pd.Timestamp("2023-10-15 22:00").value
    assert bars.close.tolist() == week["Close"].tolist()
    assert report.rows_read == report.bars == 230 and not report.warnings


def test_near_miss_is_accepted_with_a_warning(week: pd.DataFrame) -> None:
    bars, report = load(week.rename(columns={"Low": "Llow"}), 30)
    assert bars.low.tolist() == week["Low"].tolist()
    assert report.warnings == ("column 'llow' is taken for 'low'",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda week: week.drop(columns="Volume"), r"missing: volume\. Found 'timestamp', 'open'"),
        (lambda week: week.drop(columns="Timestamp"), "missing: time"),
        (lambda week: week.assign(close=1.0), "'close' is not unique"),
        (lambda week: week.iloc[:0], "no rows"),
        (lambda week: week.iloc[:1], "fewer than two bars"),
    ],
)
def test_table_is_refused(
    week: pd.DataFrame, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(change(week), 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("Timestamp,Open,High,Low,Close,Volume\n", "no rows"),
        (
            "Time,Open,High,Low,Close,Volume\n2023-10-02 09:30,1,5,2,5,1,5,1,5,9\n",
            "no readable CSV",
        ),
        ("Time Open High Low Close Volume\n2023-10-02 09:30 1 2 1 1 9\n", "Column missing"),
    ],
)
def test_file_is_refused(save: Callable, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(save(content), 30)


def test_absent_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No file"):
        load(tmp_path / "none.csv", 30)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(UserError, match=r"Line 1 of .*0x89, which is no UTF-8 text"):
        load(tmp_path / "picture.csv", 30)


def test_gzip_csv_frame_and_indexed_frame_are_the_same(week: pd.DataFrame, save: Callable) -> None:
    plain = save(week)
    packed = plain.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    sources = [plain, str(packed), week, week.set_index("Timestamp")]
    loaded = [load(source, 30) for source in sources]
    for bars, report in loaded:
        np.testing.assert_array_equal(bars.time, loaded[0][0].time)
        np.testing.assert_array_equal(bars.close, week["Close"])
        assert report.bars == 230
    assert "Timestamp" in week and len(week.columns) == 6  # untouched


# --- time stamps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date_format", "layout"),
    [
        ("%Y-%m-%d %H:%M:%S", "year-first"),
        ("%Y-%m-%dT%H:%M:%S.000", "year-first"),
        ("%Y%m%d %H%M", "year-first"),
        ("%d.%m.%Y %H:%M", "day-first"),
        ("%m/%d/%Y %H:%M", "month-first"),
        ("%m/%d/%Y %I:%M %p", "month-first"),
    ],
)
def test_date_layouts(save: Callable, date_format: str, layout: str) -> None:
    frame = market("2023-10-02", 15)
    bars, report = load(save(text(frame, date_format)), 30)
    expected = (
        frame["Timestamp"].dt.tz_localize("America/New_York").dt.as_unit("ns").astype("int64")
    )
    assert bars.time.tolist() == expected.tolist()
    assert report.date_format == layout and not report.warnings


def test_two_layouts_of_one_order_are_read_alike(save: Callable) -> None:
    frame = market("2023-10-02", 15, zone="Asia/Jerusalem")
    time = frame["Timestamp"]
    short = time.map(lambda t: f"{t.day}/{t.month}/{t.year} {t.hour}:{t:%M}")
    mixed = frame.assign(
        Timestamp=time.dt.strftime("%d/%m/%Y %H:%M:%S").where(time.dt.day > 12, short)
    )
    bars, report = load(save(mixed), 30)
    assert report.date_format == "day-first" and report.timezone == "Asia/Jerusalem"
    assert (np.diff(bars.time) > 0).all() and len(bars) == 690


def test_saturdays_and_span_decide_where_nothing_proves_the_order() -> None:
    frame = text(
        market("2023-06-05", 5), DAY_FIRST
    )  # 4 to 9 June: as month-first April to September
    report = load(frame, 30)[1]
    assert report.date_format == "day-first" and report.first == "2023-06-04T22:00:00Z"
    assert "no date proves the order" in report.warnings[0]


@pytest.mark.parametrize(
    ("dates", "layout"),
    [
        (["02/10/2023", "03/10/2023"], "day-first"),  # one day apart, not one month
        (["10/02/2023", "10/03/2023"], "month-first"),
        (["03/07/2023", "04/08/2023"], "day-first"),  # 8 April was a Saturday, 4 August was none
        (["07/03/2023", "08/04/2023"], "month-first"),
    ],
)
def test_saturdays_or_span_alone_decide(dates: list[str], layout: str) -> None:
    assert parse(pd.Series(dates)).layout == layout


def test_order_is_undecided_without_evidence() -> None:
    frame = text(market("2023-05-05", 1), "%d/%m/%Y %H:%M")  # 4 and 5 May: a span of 1 or 30 days
    same = frame.assign(Timestamp=frame["Timestamp"].str.replace("04/05", "05/05"))
    with pytest.raises(UserError, match=r"Cannot tell day from month.*--date-format"):
        load(same, 30)


@pytest.mark.parametrize("start", pd.date_range("2023-01-02", "2023-11-27", periods=9).tolist())
def test_a_file_misread_month_first_and_sorted_is_refused(start: pd.Timestamp) -> None:
    """Days up to 12 become months; the others are kept by one tool and lost by another."""
    frame = market(f"{start:%F}", 20)
    day_first = frame["Timestamp"].dt.strftime(DAY_FIRST)
    kept = pd.to_datetime(day_first, format="mixed")
    lost = pd.to_datetime(day_first, format="%m/%d/%Y %H:%M", errors="coerce")
    for stamps in (kept, lost):
        misread = frame.assign(Timestamp=stamps).dropna().sort_values("Timestamp")
        for options in ({}, {"tz": "America/New_York"}):
            with pytest.raises(UserError, match=r"daytime market|on a weekend"):
                load(misread, 30, **options)


def test_holes_between_sessions_are_told(week: pd.DataFrame) -> None:
    rest = week.drop(index=range(46, 92))  # a whole Tuesday
    assert load(rest, 30)[1].warnings == (
        "1 holes between sessions: bars or whole weekdays are missing",
    )


@pytest.mark.parametrize(
    ("stamps", "options", "message"),
    [
        (
            ["29/06/2023 10:00", "06/29/2023 10:30"],
            {},
            r"row 0 .*day-first.* and row 1 .*month-first",
        ),
        (
            ["29/06/2023 10:00", "29/06/2023 10:30"],
            {"date_format": "month-first"},
            "asks for month-first",
        ),
        (["2023-06-29 10:00", "2023-06-29 10:30"], {"date_format": "day-first"}, "year-first"),
        (["29/06/2023 10:00", "29/06/2023 10:30"], {"date_format": "year-first"}, "do not begin"),
        (["2023-06-29 10:00", "2023-06-29 10:30Z"], {}, "carry a UTC offset"),
        (["29 June 10:00", "29 June 10:30"], {}, "cannot be read.*'29 June 10:00'"),
        (["29/06/23 10:00", "29/06/23 10:30"], {}, "cannot be read"),
        (["2023-02-29 10:00", "2023-02-29 10:30"], {}, "cannot be read"),
        (
            ["29/06/2023 10:00", "29/06/2023 10:30"],
            {"date_format": "%Y-%m"},
            "cannot be read as %Y-%m",
        ),
        (["29/06/2023 10:00", "29/06/2023 10:30"], {"tz": "New York"}, "no time zone 'New York'"),
        (["2023-06-29", "2023-06-30"], {}, "step is 1440 minutes"),
    ],
)
def test_stamps_are_refused(stamps: list[str], options: dict, message: str) -> None:
    frame = market("2023-06-29", 1).iloc[:2].assign(Timestamp=stamps)
    with pytest.raises(UserError, match=message):
        load(frame, 30, **options)


def test_a_stated_pattern_reads_what_the_grammar_does_not(save: Callable) -> None:
    frame = market("2023-10-02", 5)
    bars, report = load(save(text(frame, "%d %b %y, %H.%M")), 30, date_format="%d %b %y, %H.%M")
    assert (len(bars), report.first) == (230, "2023-10-01T22:00:00Z")


def test_a_stated_pattern_may_have_the_zones_name(week: pd.DataFrame, save: Callable) -> None:
    stamps = week["Timestamp"].dt.strftime("%Y%m%d %H:%M:%S") + " America/New_York"
    named = week.assign(Timestamp=stamps)
    bars, report = load(save(named), 30, date_format="%Y%m%d %H:%M:%S %Z")
    assert (report.timezone, report.first) == ("UTC", "2023-10-15T22:00:00Z")
    assert len(bars) == 230


def test_names_in_angle_brackets_are_names(week: pd.DataFrame, save: Callable) -> None:
    date, clock = (week["Timestamp"].dt.strftime(x) for x in ("%Y.%m.%d", "%H:%M:%S"))
    frame = pd.concat([date.rename("date"), clock.rename("time"), week.iloc[:, 1:]], axis=1)
    frame.columns = [f"<{name.upper()}>" for name in frame.columns]
    bars, report = load(save(frame), 30)
    assert (len(bars), report.first) == (230, "2023-10-15T22:00:00Z")


def test_rows_that_fill_a_grid_say_nothing_of_the_zone(week: pd.DataFrame) -> None:
    whole = pd.date_range(week["Timestamp"].iloc[0], week["Timestamp"].iloc[-1], freq="30min")
    filled = week.set_index("Timestamp").reindex(whole).rename_axis("Timestamp").reset_index()
    with pytest.raises(UserError, match=r"rows are bad .*not a number"):
        load(filled, 30)


@pytest.mark.parametrize("turned", [False, True])
def test_the_newest_rows_are_those_of_the_newest_bars(week: pd.DataFrame, turned: bool) -> None:
    for bad, refused in ((229, True), (0, False)):
        frame = week.astype({"Volume": float})
        frame.loc[bad, "Close"] = np.nan
        frame = frame[::-1] if turned else frame
        if refused:
            with pytest.raises(UserError, match="Of the newest 50 bars 1 are bad"):
                load(frame, 30, live=50, repair=True)
        else:
            assert len(load(frame, 30, live=50, repair=True)[0]) == 229


def test_years_beyond_nanoseconds_do_not_wrap(week: pd.DataFrame) -> None:
    stamps = text(week, "%Y-%m-%d %H:%M")
    stamps.loc[70, "Timestamp"] = "9999-12-31 10:00"
    coarse = week.assign(Timestamp=np.array(stamps["Timestamp"].tolist(), "datetime64[s]"))
    for frame, date_format in ((stamps, None), (stamps, "%Y-%m-%d %H:%M"), (coarse, None)):
        report = load(frame, 30, date_format=date_format)[1]
        assert report.last == "2023-10-20T20:30:00Z" and report.bars == 229
        assert report.warnings == ("1 rows dropped: no such time",)


# --- zone -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "zone",
    [
        "America/New_York",
        "America/Chicago",
        "UTC",
        "Europe/London",
        "Europe/Berlin",
        "Asia/Jerusalem",
        "Asia/Tokyo",
        "Asia/Kolkata",
        "Europe/Helsinki",
        "Australia/Sydney",
    ],
)
def test_zone_is_found_across_clock_changes(zone: str, save: Callable) -> None:
    frame = market("2023-03-01", 40, zone=zone)  # clocks change on four different dates
    bars, report = load(save(frame), 30)
    assert report.timezone == zone and not report.warnings
    assert (bars.time[0], bars.time[-1]) == (
        pd.Timestamp("2023-02-28 23:00").value,
        pd.Timestamp("2023-04-25 20:30").value,
    )
    assert not bars.hole.any()


def test_tie_of_zones_is_reported_and_can_be_settled() -> None:
    frame = market("2023-01-09", 5, zone="Europe/London")  # winter: London is UTC
    assert load(frame, 30)[1].timezone == "UTC"
    assert "Europe/London fit as well" in load(frame, 30)[1].warnings[0]
    stated = load(frame, 30, tz="Europe/London")[1]
    assert stated.timezone == "Europe/London" and not stated.warnings


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_epochs_and_offsets_state_their_zone(week: pd.DataFrame, unit: str, save: Callable) -> None:
    aware = week["Timestamp"].dt.tz_localize("America/New_York")
    epoch = aware.dt.as_unit(unit).astype("int64")
    for stamps in (epoch, aware, aware.dt.strftime("%Y-%m-%dT%H:%M:%S%z")):
        bars, report = load(save(week.assign(Timestamp=stamps)), 30)
        assert (
            report.timezone == "UTC" and report.first == "2023-10-15T22:00:00Z" and len(bars) == 230
        )
    assert (
        "--tz Asia/Tokyo is not used"
        in load(week.assign(Timestamp=aware), 30, tz="Asia/Tokyo")[1].warnings[0]
    )


def around_the_clock(days: int) -> pd.DataFrame:
    time = pd.date_range("2023-10-01", periods=48 * days, freq="30min")
    return pd.DataFrame(
        {"Time": time, "Open": 100.0, "High": 100.0, "Low": 100.0, "Close": 100.0, "Volume": 1}
    )


def test_a_market_around_the_clock_passes_only_on_request() -> None:
    frame = around_the_clock(14)
    with pytest.raises(UserError, match="24-hour"):
        load(frame, 30)
    with pytest.raises(UserError, match="New York break or on a weekend"):
        load(frame, 30, tz="UTC")
    with pytest.raises(UserError, match="--tz"):
        load(frame, 30, around_the_clock=True)
    bars, _ = load(frame, 30, tz="UTC", around_the_clock=True)
    assert len(bars) == 672 and not bars.hole.any()


def test_a_market_open_by_day_only_does_not_show_its_zone(week: pd.DataFrame) -> None:
    hour = week["Timestamp"].dt.hour
    daytime = week[(hour >= 10) & (hour < 16)]
    with pytest.raises(UserError, match=r"daytime market.*--tz"):
        load(daytime, 30)
    bars, _ = load(daytime, 30, tz="America/New_York")
    assert np.flatnonzero(bars.hole).tolist() == [12, 24, 36, 48]


def test_close_stamps_are_recognised(week: pd.DataFrame) -> None:
    late = week.assign(Timestamp=week["Timestamp"] + pd.Timedelta("30min"))
    with pytest.raises(UserError, match=r"look like bar closes.*Subtract 30 minutes"):
        load(late, 30)
    with pytest.raises(UserError, match="stamps are bar opens"):
        load(late, 30, tz="America/New_York")


def test_a_stray_bar_in_the_break_is_dropped_and_counted() -> None:
    frame = market("2023-01-09", 30)
    frame.loc[len(frame)] = [pd.Timestamp("2023-02-17 17:00"), *frame.iloc[-1, 1:]]
    bars, report = load(frame, 30)
    assert (len(bars), report.ohlc_errors) == (1380, 1) and accounted(report)


# --- rows -------------------------------------------------------------------------------------


def test_identical_rows_are_dropped_and_counted(week: pd.DataFrame) -> None:
    bars, report = load(pd.concat([week.iloc[:100], week.iloc[90:]]), 30)
    assert (len(bars), report.rows_read, report.duplicates) == (230, 240, 10) and accounted(report)


def test_conflicting_rows_need_repair(week: pd.DataFrame, save: Callable) -> None:
    other = week.iloc[[7]].assign(Volume=1)
    path = save(pd.concat([week.iloc[:8], other, week.iloc[8:]]))
    with pytest.raises(UserError, match=r"line 10\).*--repair"):
        load(path, 30)
    bars, report = load(path, 30, repair=True)
    assert report.duplicates == 1 and accounted(report)
    assert bars.volume[7] == week["Volume"][7]


def test_backward_steps_need_repair(week: pd.DataFrame, save: Callable) -> None:
    path = save(pd.concat([week.iloc[:50], week.iloc[60:70], week.iloc[50:60], week.iloc[70:]]))
    with pytest.raises(UserError, match=r"backward 1 times \(line 62\).*--repair"):
        load(path, 30)
    bars, report = load(path, 30, repair=True)
    assert report.out_of_order == 1 and bars.close.tolist() == week["Close"].tolist()


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("Close", np.nan, "not a number"),
        ("Volume", np.inf, "not a number"),
        ("Open", "n/a?", "not a number"),
        ("Low", 0, "price of 0 or less"),
        ("Volume", -1, "negative volume"),
        ("Volume", 1e13, "volume above 1e+12"),
        ("High", 11_000, "High or Low not bounding"),
        ("Low", 13_000, "High or Low not bounding"),
        ("Timestamp", "2023-10-17 25:00", "no such time"),
        ("Timestamp", "2023-10-17 05:00+99:00", "no such time"),
        ("Timestamp", "2262-04-11 10:00", "no such time"),
        ("Timestamp", "2023-10-17 05:01", "off the 30-minute grid"),
    ],
)
def test_bad_rows_up_to_one_percent_are_dropped(
    week: pd.DataFrame, save: Callable, column: str, value: object, fault: str
) -> None:
    frame = week.astype(object)
    frame.loc[70:71, column] = value
    bars, report = load(save(frame), 30)
    assert report.ohlc_errors == 2 and len(bars) == 228 and accounted(report)
    assert f"2 rows dropped: {fault}" in report.warnings
    assert np.flatnonzero(bars.hole).tolist() == [70] and report.gaps == 1

    frame.loc[72, column] = value
    with pytest.raises(UserError, match=r"3 of 230.*line"):
        load(save(frame), 30)


def test_refusal_names_the_lines(week: pd.DataFrame, save: Callable) -> None:
    week.loc[70:79, "High"] = 11_000
    lines = week.to_csv(index=False).splitlines()
    path = save("\n".join([*lines[:60], "", *lines[60:]]))  # a blank line is no row, but counts
    message = r"10 of 230 .*10 High or Low not bounding; lines 73, 74, 75, 76, 77, \.\.\."
    with pytest.raises(UserError, match=message):
        load(path, 30)


def test_prices_off_tick_are_rounded_and_counted(week: pd.DataFrame) -> None:
    week.loc[10, ["Open", "High", "Low", "Close"]] += 0.1
    bars, report = load(week, 30)
    assert report.off_tick == 1 and (bars.close % 0.25 == 0).all()
    assert load(week, 30, tick=0.05)[1].off_tick == 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_prices_that_are_no_index_points_are_refused(week: pd.DataFrame, scale: float) -> None:
    week[["Open", "High", "Low", "Close"]] *= scale
    with pytest.raises(UserError, match="rescale"):
        load(week, 30)


@pytest.mark.parametrize(
    ("factor", "noted"), [(1.02, False), (1.05, True), (0.95, True), (1.3, None), (0.7, None)]
)
def test_jump_of_one_bar(week: pd.DataFrame, factor: float, noted: bool | None) -> None:
    week.loc[100:, ["Open", "High", "Low", "Close"]] *= factor
    if noted is None:
        with pytest.raises(UserError, match=r"1 bars reach more than 20 %.*row 100"):
            load(week, 30)
    else:
        assert any("1 bars reach more than 3 %" in w for w in load(week, 30)[1].warnings) == noted


@pytest.mark.parametrize(("factor", "taken"), [(1.3, True), (0.7, True), (10, False), (0.1, False)])
def test_behind_months_without_bars_the_price_may_be_another(
    week: pd.DataFrame, factor: float, taken: bool
) -> None:
    later = market("2024-01-22", 3)
    later[["Open", "High", "Low", "Close"]] *= factor
    both = pd.concat([week, later], ignore_index=True)
    if taken:
        bars, report = load(both, 30)
        assert len(bars) == len(both)
        assert any("1 bars reach more than 3 %" in warning for warning in report.warnings)
    else:
        with pytest.raises(UserError, match="1 bars reach more than 20 %"):
            load(both, 30)


# --- contracts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jump", "bar", "expected"),
    [
        (0.003, 46, [46]),  # Monday 18:00 opens the Tuesday session of expiry week
        (-0.003, 46, [46]),
        (0.002, 46, []),
        (0.006, 92, []),  # the next session's gap is the market's own
        (0.006, 57, [57]),  # inside a session
        (0.004, 57, []),
    ],
)
def test_roll(jump: float, bar: int, expected: list[int]) -> None:
    frame = market("2023-03-13", 5)
    frame.loc[bar:, ["Open", "High", "Low", "Close"]] *= 1 + jump
    bars, report = load(frame, 30)
    assert np.flatnonzero(bars.roll).tolist() == expected
    assert [round(roll["jump"], 3) for roll in report.rolls] == [jump] * len(expected)


def test_move_across_a_hole_is_no_roll(week: pd.DataFrame) -> None:
    week.loc[57:, ["Open", "High", "Low", "Close"]] *= 1.006
    bars, _ = load(week.drop(index=range(55, 57)), 30)
    assert bars.hole[55] and not bars.roll.any()


@pytest.mark.parametrize("days", [range(2, 4), range(4, 5)])
def test_thin_sessions_are_cut_as_a_hole(week: pd.DataFrame, days: range) -> None:
    rows = slice(46 * days.start, 46 * days.stop - 1)
    week.loc[rows, "Volume"] = 20
    bars, report = load(week, 30)
    left_out = 46 * len(days)
    assert (report.thin_sessions, report.sessions, len(bars)) == (len(days), 5, 230 - left_out)
    assert np.flatnonzero(bars.hole).tolist() == ([92] if days.stop < 5 else [])
    assert accounted(report, left_out) and report.gaps == 0


def test_a_thin_holiday_leaves_a_hole_that_the_calendar_does_not_see() -> None:
    frame = market("2023-11-20", 6)  # the fourth session is Thanksgiving
    frame.loc[46 * 3 : 46 * 4 - 1, "Volume"] = 20
    bars, _ = load(frame, 30)
    assert np.flatnonzero(bars.hole).tolist() == [138]


# --- length and size --------------------------------------------------------------------------


def test_wrong_length_of_bar(week: pd.DataFrame, save: Callable) -> None:
    assert load(week, None)[1].bar_minutes == 30
    with pytest.raises(
        UserError, match=r"Found 30-minute bars; expected 5-.*give a file of 5-minute bars"
    ):
        load(week, 5)
    path = save(market("2023-10-02", 5, 5))
    with pytest.raises(UserError, match="Found 5-minute bars; expected 30-") as caught:
        load(path, 30)
    mend = f": make them by `gm-jax data resample {path} --minutes 30 --out NEW.csv`."
    assert str(caught.value).endswith(mend)
    with pytest.raises(UserError, match="data resample FILE --minutes 30"):
        load(market("2023-10-02", 5, 10), 30)


@pytest.mark.parametrize(("minutes", "least"), [(5, 1_000), (30, 500)])
def test_too_few_bars_to_train(minutes: int, least: int) -> None:
    bars, _ = load(market("2023-10-02", 15, minutes), minutes)
    require_size(bars[:least])
    with pytest.raises(UserError, match=f"{least - 1:,} usable.*at least {least:,}"):
        require_size(bars[: least - 1])


def test_report_is_plain_json(week: pd.DataFrame) -> None:
    week.loc[57:, ["Open", "High", "Low", "Close"]] *= 1.006
    report = load(week, 30)[1].to_json()
    assert list(json.loads(json.dumps(report))) == KEYS.split()
    assert report["rolls"][0].keys() == {"time", "jump"}
