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
from gm_jax.market.paths import ar1, bar_sd, decaying_sum
from gm_jax.market.rolls import jumps, rolls, thin_sessions
from gm_jax.market.synthetic import MARKETS, World, describe, generate
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
    for name in ("belief", "state"):
        column = getattr(short, name)
        if column is not None:
            np.testing.assert_array_equal(column, getattr(again, name)[:1_000])
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
    assert bars.volume.std() > 0.2
    if market not in ("martingale", "realistic"):
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
            "kappa=9.0 for market 'planted': expected a number from 0.001 to 2, size of the drift",
        ),
        ({"parameters": {"kappa": float("nan")}}, "kappa=nan"),
        ({"parameters": {"duration": "long"}}, "duration='long'"),
        ({"parameters": {"seed": 3}}, "no parameter 'seed'"),
        ({"minutes": 15}, "minutes=15: .* 5 or 30"),
        (
            {"market": "two_state", "parameters": {"drift_up": -1.0}},
            "drift_up=-1 is below drift_down=-0.12: .* favourable state, exchange",
        ),
        ({"bars": 0}, "bars=0"),
        ({"bars": 1e3}, "bars=1000.0: expected a whole number"),
        ({"bars": 10**9}, "bars=1000000000"),
        ({"seed": -1}, "seed=-1"),
        (
            {"parameters": {"kappa": 2, "duration": 1e6}, "bars": 10_000},
            "price leaves 1 to 10,000,000 points at bar [0-9,]+: ask for fewer bars, a smaller",
        ),
        (
            {"market": "realistic", "parameters": {"annual_drift": -1}, "bars": 1_000_000},
            "price leaves 1 to 10,000,000 points at bar [0-9,]+: ",
        ),
        ({"market": "two_state", "parameters": {"kappa": 0.1}}, "has no parameter 'kappa'"),
        ({"market": "martingale", "parameters": {"annual_drift": 0.1}}, "has no parameter"),
        ({"market": "mean_reverting", "parameters": {"share": 1}}, "share=1 .* to 0.999, of a"),
    ],
)
def test_bad_arguments_are_explained(change, message):
    good = {"market": "planted", "bars": 10, "minutes": 5, "seed": 0}
    with pytest.raises(UserError, match=message) as error:
        generate(**(good | change))
    assert len(str(error.value).splitlines()) <= 2


LIMITS = [
    (market, name, limit)
    for market, recipe in MARKETS.items()
    for name, p in recipe.parameters.items()
    for limit in (p.low, p.high)
]


@pytest.mark.parametrize(("market", "name", "limit"), LIMITS)
def test_parameters_work_up_to_their_bounds(market, name, limit):
    parameters = {name: limit}
    try:
        world = generate(market, bars=700, minutes=5, seed=0, parameters=parameters)
    except UserError as error:
        exchanged = name.startswith("drift") and "favourable" in str(error)
        assert exchanged or ("price leaves" in str(error) and name.startswith(("drift", "kappa")))
        return
    b = world.bars
    assert np.all(np.isfinite([b.open, b.high, b.low, b.close])) and b.low.min() > 0
    assert np.all(b.high >= np.maximum(b.open, b.close)) and b.volume.min() >= 1
    assert world.parameters[name] == limit
    if world.belief is not None:
        assert np.all(np.abs(world.belief) <= 1)


def test_every_market_says_what_it_tests_and_what_is_best():
    for market, recipe in MARKETS.items():
        text = describe(market)
        assert text.startswith(f"{market}: {recipe.tests} Best: {recipe.best}\n")
        assert all(f"  {name} = " in text for name in recipe.parameters)
        assert all(sentence.endswith(".") for sentence in (recipe.tests, recipe.best))
    assert "  kappa = 0.12 (0.25 at 30 minutes): size of the drift" in describe("planted")
    with pytest.raises(UserError, match="did you mean 'realistic'"):
        describe("realstic")


def test_what_is_known_of_each_market():
    known = {name: generate(name, bars=10, minutes=5, seed=0) for name in MARKETS}
    assert [n for n, w in known.items() if w.belief is None] == ["realistic", "martingale"]
    assert [n for n, w in known.items() if w.state is None] == ["realistic", "martingale"]
    assert [n for n, w in known.items() if w.flat_is_best] == ["martingale"]
    below = {n: w.below for n, w in known.items() if w.below != "short"}
    assert below == {
        "risk_only": "flat",
        "volatility_step": "less",
        "realistic": "flat",
        "martingale": "flat",
    }


# --- belief and best policy -------------------------------------------------------------------

WITH_BELIEF = [pair for pair in BOTH if pair[0] not in ("realistic", "martingale")]


@pytest.mark.parametrize(("market", "minutes"), WITH_BELIEF)
def test_belief_is_calibrated(market, minutes):
    """Where belief is about b, the state is up in (1 + b) / 2 of the cases, and it is never lazy.

    Errors are alike within a spell of the state, so their spread is measured over blocks.
    """
    worlds = [generate(market, bars=60_000, minutes=minutes, seed=seed) for seed in range(6)]
    belief = np.stack([world.belief for world in worlds])
    up = np.sign(np.stack([world.state for world in worlds]))
    size = 2_000 if market != "volatility_step" else 60_000
    for low in np.arange(-1.0, 1.0, 0.2):
        near = (belief >= low) & (belief <= low + 0.2)
        if near.sum() < 1_000:
            continue
        error = np.where(near, up - belief, 0.0).reshape(-1, size).sum(axis=1)
        spread = np.sqrt(np.sum((error - error.mean()) ** 2)) / near.sum()
        assert abs(error.sum()) / near.sum() < 4 * spread + 0.002, (low, near.sum())
        assert spread < 0.08
    slope = np.mean(belief * up) / np.mean(belief**2)
    assert abs(slope - 1) < (0.02 if market != "planted_hard" else 0.08)  # E[state | b] = b


def sharpe(world: World, position: np.ndarray) -> float:
    """Decide at a close, trade at the next open, hold to the one after that; a year of it."""
    pnl = profit(world, position)
    return float(pnl.mean() / pnl.std() * np.sqrt(252 * 1380 / world.bars.minutes))


def profit(world: World, position: np.ndarray) -> np.ndarray:
    gain = np.diff(world.bars.open)[1:] / world.bars.open[1:-1]
    return position[:-2] * gain


@pytest.mark.parametrize("minutes", [5, 30])
def test_risk_only_pays_the_bold_more_and_the_careful_better(minutes):
    bold, careful = [], []
    for seed in range(6):
        world = generate("risk_only", bars=100_000, minutes=minutes, seed=seed)
        bold.append(profit(world, np.ones(100_000)))
        careful.append(profit(world, np.where(world.belief > 0, 1.0, 0.0)))
    assert np.sum(bold) > 1.05 * np.sum(careful) > 0
    ratio = lambda gains: np.sum(gains) / np.std(gains)  # noqa: E731
    assert ratio(careful) > 1.4 * ratio(bold)


@pytest.mark.parametrize("minutes", [5, 30])
def test_volatility_step_pays_to_hold_less_while_wild(minutes):
    world = generate("volatility_step", bars=100_000, minutes=minutes, seed=0)
    hold, less = np.ones(100_000), np.where(world.belief > 0, 1.0, 1 / 6)
    assert profit(world, hold).sum() > profit(world, less).sum() > 0
    assert sharpe(world, less) > 1.3 * sharpe(world, hold)


@pytest.mark.parametrize("minutes", [5, 30])
@pytest.mark.parametrize("market", ["planted", "mean_reverting", "two_state", "execution_only"])
def test_following_the_belief_gains_either_way(market, minutes):
    world = generate(market, bars=100_000, minutes=minutes, seed=0)
    long, short = np.maximum(np.sign(world.belief), 0), np.minimum(np.sign(world.belief), 0)
    assert sharpe(world, long) > 4 and sharpe(world, short) > 4


@pytest.mark.parametrize("minutes", [5, 30])
def test_working_an_order_saves_more_impact_than_it_costs_in_drift(minutes):
    """Three contracts at once pay √3 as much impact each as one by one (impact=2)."""
    net = {"at once": 0.0, "one by one": 0.0}
    for seed in range(4):
        world = generate("execution_only", bars=100_000, minutes=minutes, seed=seed)
        target = np.where(world.belief > 0.4, 3.0, np.where(world.belief < -0.4, 0.0, np.nan))
        known = np.maximum.accumulate(np.where(np.isnan(target), 0, np.arange(len(target))))
        target = np.nan_to_num(target)[known]
        slow, held = np.empty_like(target), 0.0
        for t, wanted in enumerate(target.tolist()):
            held += max(min(wanted - held, 1), -1)
            slow[t] = held
        volume, volatility = world.bars.volume.mean(), world.parameters["annual_volatility"]
        per_contract = 2.0 * bar_sd(volatility, minutes) / np.sqrt(volume)
        for name, position in (("at once", target), ("one by one", slow)):
            traded = np.abs(np.diff(position, prepend=0.0))
            net[name] += profit(world, position).sum() - np.sum(per_contract * traded**1.5)
    assert net["one by one"] > 1.01 * net["at once"] > 0


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
