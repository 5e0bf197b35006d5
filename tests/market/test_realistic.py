"""The realistic market and the martingale: the look of NQ, and nothing to earn beyond drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gm_jax.market.bars import Bars
from gm_jax.market.loader import load
from gm_jax.market.paths import streams
from gm_jax.market.realistic import gaps
from gm_jax.market.rolls import rolls
from gm_jax.market.synthetic import generate
from tests.market.statistics import statistics


# --- the look of NQ ---------------------------------------------------------------------------

# What thirty minutes of NQ show, June 2020 to December 2023, and how near to it the statistics
# must come: the figures were rounded, and some measured by slightly other definitions.
REAL = {
    "bars a year": (11_830, 30),
    "sd bp": (21.7, 0.05),
    "median abs return bp": (7.6, 0.05),
    "annual volatility": (0.24, 0.005),
    "excess kurtosis": (18, 0.5),
    "skew": (-0.4, 0.05),
    "largest autocorrelation": (0.020, 0.005),
    "abs autocorrelation 1": (0.33, 0.01),
    "abs autocorrelation 10": (0.14, 0.005),
    "abs autocorrelation session": (0.28, 0.005),
    "seasonless autocorrelation 1": (0.26, 0.005),
    "seasonless autocorrelation 10": (0.18, 0.005),
    "seasonless autocorrelation session": (0.16, 0.005),
    "corr log volume log range": (0.82, 0.005),
    "corr volume abs return": (0.55, 0.005),
    "range over body": (2.04, 0.005),
    "hill index": (3.1, 0.05),
    "leverage": (-0.2, 0.05),
    "variance ratio 4": (1.00, 0.005),
    "variance ratio 46": (1.02, 0.005),
    "open differs": (0.78, 0.005),
    "open differs ticks": (1.8, 0.05),
    "zero returns": (0.008, 0.0005),
    "break gap p50 bp": (2.2, 0.05),
    "break gap p95 bp": (15, 0.5),
    "weekend gap p50 bp": (10, 0.5),
    "weekend gap p95 bp": (49, 0.5),
    "season of volatility": (6.6, 0.05),
    "season of volume": (43, 2.5),
}

# What generated bars must show: thirty minutes, five minutes; None where one says nothing.
BANDS = {
    "bars a year": ((11_500, 12_050), (69_000, 72_500)),
    "sd bp": ((16, 29), (4, 12)),
    "median abs return bp": ((6, 11), (1.5, 4.5)),
    "annual volatility": ((0.18, 0.32), (0.10, 0.32)),
    "excess kurtosis": ((8, 45), (12, 200)),
    "skew": ((-0.9, 0.7), None),
    "largest autocorrelation": ((0, 0.045), (0, 0.035)),
    "abs autocorrelation 1": ((0.25, 0.42), (0.22, 0.42)),
    "abs autocorrelation 10": ((0.08, 0.20), (0.15, 0.32)),
    "abs autocorrelation session": ((0.20, 0.36), (0.12, 0.30)),
    "seasonless autocorrelation 1": ((0.15, 0.32), (0.10, 0.32)),
    "seasonless autocorrelation 10": ((0.08, 0.25), (0.04, 0.22)),
    "seasonless autocorrelation session": ((0.06, 0.22), (0.0, 0.18)),
    "corr log volume log range": ((0.72, 0.90), (0.70, 0.92)),
    "corr volume abs return": ((0.45, 0.65), (0.45, 0.70)),
    "range over body": ((1.93, 2.12), (1.93, 2.12)),
    "hill index": ((2.5, 3.6), (2.4, 3.6)),
    "leverage": ((-0.33, -0.05), None),
    "variance ratio 4": ((0.95, 1.05), None),
    "variance ratio 46": ((0.90, 1.10), None),
    "open differs": ((0.65, 0.88), None),
    "open differs ticks": ((1.2, 2.8), None),
    "zero returns": ((0.002, 0.015), (0.005, 0.04)),
    "break gap p50 bp": ((1.5, 3.5), (1.5, 3.5)),
    "break gap p95 bp": ((9, 25), (9, 25)),
    "weekend gap p50 bp": ((7, 15), (7, 15)),
    "weekend gap p95 bp": ((35, 140), (35, 140)),
    "season of volatility": ((5, 9), None),
    "season of volume": ((30, 60), None),
    "opening volatility": (None, (3.4, 4.4)),  # 09:30 over the mean; NQ has 3.9 and 7.9
    "opening volume": (None, (7.2, 8.6)),
}


def test_statistics_of_the_real_file(shared_data: Path) -> None:
    """The statistics measure what the bands are about."""
    bars, _ = load(shared_data / "NQ - 30 min - ETH.csv", 30)
    measured = pd.Series(statistics(bars))
    table = pd.DataFrame(REAL, ["real", "tolerance"]).T
    error = (measured.reindex(table.index) - table["real"]).abs()
    assert (error <= table["tolerance"]).all(), measured[error.index[error > table["tolerance"]]]


@pytest.mark.parametrize(("minutes", "column"), [(30, 0), (5, 1)])
def test_realistic_lies_in_every_band(minutes, column):
    """The median over five seeds of 500 sessions each."""
    bars = 500 * 1380 // minutes
    worlds = (generate("realistic", bars=bars, minutes=minutes, seed=seed) for seed in range(5))
    median = pd.DataFrame([statistics(world.bars) for world in worlds]).median()
    assert set(BANDS) == set(median.index)
    bands = {name: band[column] for name, band in BANDS.items() if band[column] is not None}
    table = pd.DataFrame(bands, ["low", "high"]).T.assign(median=median)
    assert table["median"].between(table["low"], table["high"]).all(), table


def test_statistics_are_not_met_by_just_any_market():
    """Constant volatility without hours or gaps misses most bands."""
    bars = generate("planted", bars=500 * 276, minutes=5, seed=0).bars
    measured = statistics(bars)
    missed = [n for n, (_, b) in BANDS.items() if b and not b[0] <= measured[n] <= b[1]]
    assert len(missed) > 12, missed


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


def test_drift_is_that_asked_for():
    """At 1 % volatility little but drift and gaps is left of a year."""
    quiet = {"annual_volatility": 0.01}
    for drift in (-1.0, 0.12, 1.0):
        growth = []
        for seed in range(20):
            parameters = quiet | {"annual_drift": drift}
            bars = generate(
                "realistic", bars=252 * 46, minutes=30, seed=seed, parameters=parameters
            ).bars
            growth.append(np.log(bars.close / bars.open).sum())
        assert abs(np.mean(growth) - drift) < 4 * 0.02 / np.sqrt(20) + 0.01


# --- nothing to be earned ---------------------------------------------------------------------


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


@pytest.mark.parametrize("market", ["realistic", "martingale"])
def test_thirty_minutes_are_the_aggregate_of_five(market):
    n = 60 * 46 - 7
    five = generate(market, bars=6 * n, minutes=5, seed=9).bars
    thirty = generate(market, bars=n, minutes=30, seed=9).bars
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    frame = pd.DataFrame({k: getattr(five, k) for k in how}, index=pd.to_datetime(five.time))
    joined = frame.resample("30min", label="left", closed="left").agg(how).dropna()
    np.testing.assert_array_equal(joined.index.as_unit("ns").asi8, thirty.time)
    for name in how:
        np.testing.assert_array_equal(joined[name], getattr(thirty, name), err_msg=name)
