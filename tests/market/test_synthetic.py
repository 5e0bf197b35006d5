"""Generated markets: the laws they promise, checked from the bars alone where that is possible."""

from __future__ import annotations

import dataclasses
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import holes, session_of
from gm_jax.market.loader import load
from gm_jax.market.paths import ar1, decaying_sum, extremes, streams
from gm_jax.market.realistic import gaps
from gm_jax.market.rolls import jumps, rolls, thin_sessions
from gm_jax.market.switching import hamilton_belief, hidden_state
from gm_jax.market.synthetic import MARKETS, generate
from gm_jax.market.writing import write_csv


BOTH = [(market, minutes) for market in MARKETS for minutes in (5, 30)]
every_market = pytest.mark.parametrize(("market", "minutes"), BOTH)


def columns(bars: Bars) -> dict[str, np.ndarray]:
    return {f.name: np.asarray(getattr(bars, f.name)) for f in dataclasses.fields(bars)}


def assert_same(a: Bars, b: Bars) -> None:
    for name, column in columns(a).items():
        np.testing.assert_array_equal(column, getattr(b, name), err_msg=name)
        assert column.dtype == np.asarray(getattr(b, name)).dtype, name


# --- every market -----------------------------------------------------------------------------


@every_market
def test_a_seed_decides_and_a_longer_run_begins_with_the_shorter(market, minutes):
    short = generate(market, bars=1_000, minutes=minutes, seed=3)
    again = generate(market, bars=4_321, minutes=minutes, seed=3, parameters=short.parameters)
    assert_same(short.bars, again.bars[:1_000])
    other = generate(market, bars=1_000, minutes=minutes, seed=4)
    assert not np.array_equal(short.bars.close, other.bars.close)
    assert len(again.bars) == 4_321 and len(generate(market, bars=1, minutes=5, seed=0).bars) == 1


@every_market
def test_bars_are_valid_and_no_loader_rule_objects(market, minutes):
    bars = generate(market, bars=60_000, minutes=minutes, seed=1).bars
    prices = np.stack([bars.open, bars.high, bars.low, bars.close])
    assert np.all(prices == np.rint(prices * 4) / 4) and prices.min() > 0
    assert np.all(bars.high >= prices.max(axis=0)) and np.all(bars.low <= prices.min(axis=0))
    assert np.all(bars.volume == np.rint(bars.volume)) and bars.volume.min() >= 1

    assert not holes(bars.time, minutes).any() and not bars.hole.any() and not bars.roll.any()
    jump = jumps(bars.open, bars.close)
    assert not rolls(jump, bars.session, bars.hole).any()
    assert not thin_sessions(bars.session, bars.volume).any()
    if market == "planted":
        np.testing.assert_array_equal(bars.open[1:], bars.close[:-1])


@pytest.mark.parametrize(("minutes", "per_session"), [(5, 276), (30, 46)])
def test_sessions_run_from_18_to_17_new_york_on_every_weekday(minutes, per_session):
    bars = generate("planted", bars=300 * per_session, minutes=minutes, seed=0).bars
    np.testing.assert_array_equal(bars.session, session_of(bars.time))
    days, counts = np.unique(bars.session, return_counts=True)
    weekdays = pd.bdate_range("2000-01-03", periods=300).to_numpy().astype("datetime64[D]")
    np.testing.assert_array_equal(days.astype("datetime64[D]"), weekdays)
    assert set(counts) == {per_session}
    new_york = ZoneInfo("America/New_York")
    stamps = pd.to_datetime(bars.time, utc=True).to_pydatetime().reshape(300, per_session)
    local = [(day[0].astimezone(new_york), day[-1].astimezone(new_york)) for day in stamps]
    assert {first.strftime("%H:%M") for first, _ in local} == {"18:00"}
    assert {last.strftime("%H:%M") for _, last in local} == {f"16:{60 - minutes:02d}"}
    assert len({first.utcoffset() for first, _ in local}) == 2, "no change of clocks was met"


@every_market
def test_csv_reads_back_the_same(market, minutes, tmp_path):
    bars = generate(market, bars=3_000, minutes=minutes, seed=5).bars
    path = tmp_path / "bars.csv.gz" if minutes == 30 else tmp_path / "bars.csv"
    write_csv(bars, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    plain = pd.read_csv(path, parse_dates=["Date"])
    assert list(plain) == ["Date", "Open", "High", "Low", "Close", "Volume"]
    local = plain["Date"].dt.tz_localize("America/New_York").dt.tz_convert("UTC")
    np.testing.assert_array_equal(local.dt.as_unit("ns").astype("int64"), bars.time)
    np.testing.assert_array_equal(plain["Close"], bars.close)
    assert plain["Volume"].dtype == np.int64

    loaded, report = load(path, minutes)
    assert_same(loaded, bars)
    assert report.rolls == () and report.gaps == 0


def test_a_failed_write_leaves_nothing(tmp_path):
    bars = generate("planted", bars=10, minutes=5, seed=5).bars
    with pytest.raises(UserError, match="folder"):
        write_csv(bars, tmp_path / "absent" / "bars.csv")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError):
        write_csv(bars, tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"market": "plantd"}, "did you mean 'planted'.*Known: planted, planted_hard, "),
        ({"parameters": {"kapa": 0.1}}, "no parameter 'kapa', did you mean 'kappa'"),
        (
            {"parameters": {"kappa": 9.0}},
            r"kappa=9.0 for market 'planted': expected a number from 0.001 to 2",
        ),
        ({"parameters": {"kappa": float("nan")}}, "kappa=nan"),
        ({"parameters": {"duration": "long"}}, "duration='long'"),
        ({"parameters": {"seed": 3}}, "no parameter 'seed'"),
        ({"minutes": 15}, "minutes=15: .* 5 or 30"),
        ({"bars": 0}, "bars=0"),
        ({"bars": 1e3}, "bars=1000.0: expected a whole number"),
        ({"bars": 10**9}, "bars=1000000000"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_explained(change, message):
    good = {"market": "planted", "bars": 10, "minutes": 5, "seed": 0}
    with pytest.raises(UserError, match=message) as error:
        generate(**(good | change))
    assert len(str(error.value).splitlines()) <= 2


# --- planted ----------------------------------------------------------------------------------

PLANTED = pytest.mark.parametrize(
    ("minutes", "duration", "kappa", "accuracy"), [(5, 276, 0.12, 0.79), (30, 92, 0.25, 0.83)]
)


def symmetric(duration: float, kappa: float) -> dict[str, float]:
    return {
        "duration_up": duration,
        "duration_down": duration,
        "drift_up": kappa,
        "drift_down": -kappa,
        "volatility_ratio": 1.0,
    }


@PLANTED
def test_planted_keeps_its_law(minutes, duration, kappa, accuracy):
    world = generate("planted", bars=100_000, minutes=minutes, seed=7)
    state, n = world.state, 100_000
    assert world.parameters["duration"] == duration and world.parameters["kappa"] == kappa
    flips, p = np.mean(state[1:] != state[:-1]), 1 / duration
    assert abs(flips - p) < 4 * np.sqrt(p * (1 - p) / n)

    sd = 0.16 / np.sqrt(252 * 1380 / minutes)
    z = np.log(world.bars.close / world.bars.open) / sd
    shock = z - kappa * state
    assert abs(shock.mean()) < 4 / np.sqrt(n)
    assert abs(shock.var() - 1) < 4 * np.sqrt(2 / n) + 0.005  # rounding to ticks adds a little
    assert abs(np.mean(shock**4) - 3) < 0.1
    # Highs and lows: the mean range of a Brownian path is √(8/π) of its deviation.
    span = np.log(world.bars.high / world.bars.low) / sd
    assert abs(span.mean() / np.sqrt(8 / np.pi) - 1) < 0.02
    assert abs(world.bars.volume.mean() / (1950 * minutes / 5) - 1) < 0.01


@PLANTED
def test_filter_is_as_good_as_theory_says_and_calibrated(minutes, duration, kappa, accuracy):
    hits, calibration = [], []
    for seed in range(4):
        world = generate("planted", bars=60_000, minutes=minutes, seed=seed)
        state = world.state
        hits.append(np.mean(np.sign(world.belief) == state))
        calibration.append(np.mean(world.belief * state) / np.mean(world.belief**2))
    assert abs(np.mean(hits) - accuracy) < 0.012
    assert abs(np.mean(calibration) - 1) < 0.02  # E[state | belief] = belief
    assert not world.flat_is_best


def test_either_drift_may_come_first():
    first = [hidden_state(1, 276.0, 276.0, streams(seed))[0] for seed in range(400)]
    assert abs(np.mean(first)) < 4 / np.sqrt(400) and set(first) == {-1.0, 1.0}


def test_belief_is_the_hamilton_filter_of_the_bars_seen():
    world = generate(
        "planted", bars=3_000, minutes=5, seed=2, parameters={"kappa": 0.2, "duration": 100}
    )
    sd = 0.16 / np.sqrt(252 * 276)
    z = np.log(world.bars.close / np.r_[world.bars.open[0], world.bars.close[:-1]]) / sd
    p, expected = np.array([0.5, 0.5]), []
    move = np.array([[0.99, 0.01], [0.01, 0.99]])
    for x in z:  # the textbook's form, in probabilities
        p = move @ p * np.exp(-0.5 * (x - np.array([0.2, -0.2])) ** 2)
        p /= p.sum()
        expected.append(p[0] - p[1])
    np.testing.assert_allclose(world.belief, expected, atol=1e-12)


def test_belief_sees_no_later_bar():
    z = np.random.default_rng(0).standard_normal(500)
    law = symmetric(100.0, 0.2)
    whole = hamilton_belief(z, **law)
    for t in (0, 1, 250, 498):
        changed = np.r_[z[: t + 1], -5 * z[t + 1 :]]
        np.testing.assert_array_equal(hamilton_belief(changed, **law)[: t + 1], whole[: t + 1])
        np.testing.assert_array_equal(hamilton_belief(z[: t + 1], **law), whole[: t + 1])
    assert hamilton_belief(-z, **law)[-1] == pytest.approx(-whole[-1], abs=1e-12)


def test_components_have_their_own_noise():
    weak, strong = (
        generate("planted", bars=500, minutes=5, seed=1, parameters={"kappa": k})
        for k in (0.1, 0.3)
    )
    state, sd = weak.state, 0.16 / np.sqrt(252 * 276)
    drift = np.log(strong.bars.close / weak.bars.close)
    np.testing.assert_allclose(drift, 0.2 * sd * np.cumsum(state), atol=3e-5)  # a tick of rounding
    np.testing.assert_array_equal(weak.bars.volume, strong.bars.volume)


def test_extremes_have_their_exact_law():
    n, end = 200_000, np.full(200_000, 0.5)
    high, low = extremes(np.zeros(n), end, 1.0, streams(0))
    assert high.min() >= 0.5 and low.max() <= 0.0
    for level in (0.6, 1.0, 1.5):  # P(max > m | ends) = exp(-2 m (m - end) / sd²)
        expected = np.exp(-2 * level * (level - 0.5))
        assert abs(np.mean(high > level) - expected) < 0.005
        assert abs(np.mean(low < 0.5 - level) - expected) < 0.005


# --- martingale -------------------------------------------------------------------------------


def rule_positions(close: np.ndarray) -> dict[str, np.ndarray]:
    frame = pd.Series(close)
    change = frame.diff()
    mean20, sd20 = frame.rolling(20).mean(), frame.rolling(20).std()
    raw = {
        "sma 5/20": frame.rolling(5).mean() - mean20,
        "momentum 69": frame.diff(69),
        "reversal 1": -change,
        "fade the band": -((frame - mean20) / sd20).where(lambda z: z.abs() > 1.5, 0),
        "session momentum": frame.diff(276),
        "hold": frame * 0 + 1,
    }
    return {name: np.sign(x.fillna(0.0).to_numpy()) for name, x in raw.items()}


def gross_sharpe(bars: Bars) -> dict[str, float]:
    """Decide at a close, trade at the next open, hold to the one after that."""
    gain = bars.open[2:] - bars.open[1:-1]
    pnl = {name: p[:-2] * gain for name, p in rule_positions(bars.close).items()}
    year = np.sqrt(252 * 276 * 5 / bars.minutes)
    return {name: float(x.mean() / x.std() * year) for name, x in pnl.items()}


def t_statistics(market: str, seeds: int) -> pd.Series:
    worlds = (generate(market, bars=150 * 276, minutes=5, seed=s) for s in range(seeds))
    table = pd.DataFrame([gross_sharpe(world.bars) for world in worlds])
    return table.mean() / (table.std() / np.sqrt(seeds))


def test_no_rule_gains_on_martingale_but_rules_gain_on_planted():
    t = t_statistics("martingale", 24)
    assert (t.abs() < 3).all(), t
    assert (t_statistics("planted", 4)[["momentum 69", "sma 5/20"]] > 6).all()
    world = generate("martingale", bars=10, minutes=5, seed=0)
    assert world.flat_is_best and world.belief is None


def test_rounding_to_ticks_gives_no_edge():
    """At 1 % volatility a step is a few ticks, so a bias of rounding would show up large."""
    bars = generate(
        "martingale", bars=200_000, minutes=5, seed=0, parameters={"annual_volatility": 0.01}
    ).bars
    path = np.stack([bars.open, bars.close], axis=1).ravel()
    move = np.diff(path)
    for after in (move[:-1] > 0, move[:-1] < 0, move[:-1] == 0):
        x = move[1:][after]
        assert abs(x.mean()) < 4 * x.std() / np.sqrt(len(x))


def test_thirty_minutes_are_the_aggregate_of_five():
    n = 60 * 46 - 7
    five = generate("martingale", bars=6 * n, minutes=5, seed=9).bars
    thirty = generate("martingale", bars=n, minutes=30, seed=9).bars
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    frame = pd.DataFrame({k: getattr(five, k) for k in how}, index=pd.to_datetime(five.time))
    joined = frame.resample("30min", label="left", closed="left").agg(how).dropna()
    np.testing.assert_array_equal(joined.index.as_unit("ns").asi8, thirty.time)
    for name in how:
        np.testing.assert_array_equal(joined[name], getattr(thirty, name), err_msg=name)


def test_martingale_looks_like_nq():
    """A few bands of the real five-minute market, the median over seeds of 500 sessions."""
    rows = []
    for seed in range(5):
        bars = generate("martingale", bars=500 * 276, minutes=5, seed=seed).bars
        r = np.diff(np.log(bars.close).reshape(-1, 276), axis=1)
        z = (r - r.mean()) / r.std()
        a, span = np.abs(r), np.log((bars.high - bars.low + 0.25) / bars.close)
        rows.append(
            {
                "sd": r.std() * 1e4,
                "kurtosis": np.mean(z**4) - 3,
                "persistence": np.corrcoef(a[:, :-1].ravel(), a[:, 1:].ravel())[0, 1],
                "volume/range": np.corrcoef(np.log(bars.volume), span)[0, 1],
                "range/body": np.mean(bars.high - bars.low) / np.mean(abs(bars.close - bars.open)),
                "unmoved opens": np.mean(bars.open[1:] == bars.close[:-1]),
                "volume": bars.volume.mean(),
            }
        )
    median = pd.DataFrame(rows).median()
    low = pd.Series([4, 12, 0.22, 0.70, 1.93, 0.12, 1_750], median.index)
    high = pd.Series([12, 200, 0.42, 0.92, 2.12, 0.35, 2_150], median.index)
    assert median.between(low, high).all(), median


def test_gaps_have_the_real_sizes_and_are_never_taken_for_rolls():
    days = np.busday_offset(np.datetime64("2000-01-03"), np.arange(50_000)).astype(np.int64)
    gap = gaps(days, streams(0))
    assert not rolls(gap, days, np.zeros(len(days), bool)).any()
    bp, weekend = np.abs(gap) * 1e4, np.diff(days, prepend=days[0] - 3) == 3
    for size, (low50, high50), (low95, high95) in [
        (bp[~weekend], (1.5, 3.5), (9, 25)),
        (bp[weekend], (7, 15), (35, 140)),
    ]:
        assert low50 < np.median(size) < high50 and low95 < np.quantile(size, 0.95) < high95
    assert bp.max() <= 300 and abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_recursions_match_a_plain_loop():
    x = np.random.default_rng(0).standard_normal(5_000)
    for phi in (0.5, 2 ** (-1 / 276), 0.9999):
        y, expected = 0.0, []
        for value in x:
            y = phi * y + value
            expected.append(y)
        np.testing.assert_allclose(decaying_sum(x, phi), expected, rtol=1e-9, atol=1e-9)
    start = [ar1(0.3, 50.0, np.random.default_rng(s).standard_normal(3))[0] for s in range(4_000)]
    assert abs(np.std(start) / 0.3 - 1) < 0.05  # stationary from the first bar on
