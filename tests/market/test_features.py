"""Features: both readers, references, causality, rolls, warm-up, state, errors."""

import ast
import decimal
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_jax.market import features as ft
from gm_jax.market.calendar import MINUTE, regular_hours
from gm_jax.market.loader import load
from gm_jax.market.ops import block, half_life_weight
from gm_jax.market.readers import Batch
from gm_jax.market.regimes import REGIMES
from gm_jax.market.registry import parameters
from gm_jax.market.synthetic import clock
from tests.market.feature_reference import MINUTES, REFERENCES, Quotes, Reference, make_bars


POINTS = ("atr_14", "change_std_20", "mean_notional_20")
TIMED = ("time_of_day", "minutes_to_break_1380", "minutes_to_break_60", "regular_hours")
REGIME = ("regime_40", *(f"{name.lower()}_40" for name in REGIMES[1:]))
SEASONAL = ("seasonal_return", "annual_volatility_40", "annual_volatility_7")
RECURSIVE = (
    *("rsi_14", "price_ema_20", "ewma_momentum_10", "macd_12_26_9", "macd_line_12_26"),
    *("atr_14", "atr_ratio_14"),
)
OBSERVED = (
    *dict.fromkeys(ft.TACTICAL_FEATURES + ft.STRATEGIC_FEATURES),
    *("price_ema_20", "ewma_momentum_10", "macd_line_12_26", "bollinger_width_20", "channel_20"),
    *("drawdown_60", "atr_ratio_14", "volume_zscore_20", "vwap_20", "money_flow_14"),
    *("volume_price_20", "sma_cross_5_20", *TIMED, *SEASONAL, *REGIME),
)
WINDOWED = tuple(n for n in OBSERVED + POINTS if n not in RECURSIVE + TIMED + SEASONAL + REGIME)
LENGTHS = {0: [""], 1: ["_1", "_3"], 2: ["_1_2"], 3: ["_1_2_2"]}
SHORT = tuple(
    stem + lengths for stem in sorted(ft.REGISTRY) for lengths in LENGTHS[len(parameters(stem))]
)


def split_name(name):
    """Return stem and lengths."""
    stem = name.rstrip("_0123456789")
    return stem, [int(n) for n in name[len(stem) + 1 :].split("_") if n]


def stream(names, bars, state=None):
    reader = ft.FeatureStream(names, MINUTES)
    if state is not None:
        reader.restore(state)
    return np.array([reader.update(*bar) for bar in bars]).reshape(-1, len(names)), reader


def quotes(prices, volume):
    """Bars that open, stay and close at a price."""
    T = len(prices)
    return Quotes(clock(T, MINUTES)[0], *[prices] * 4, volume, np.zeros(T, bool))


def assert_same_bits(a, b):
    bits = [np.where(np.isnan(v), np.nan, v).view(np.int64) for v in (a, b)]
    np.testing.assert_array_equal(*bits, strict=True)


# both readers give the same bits


@pytest.mark.parametrize(
    "bars",
    [
        make_bars(3_000, roll_share=0.01),
        make_bars(700, 1, 0.05, scale=1e-7, still=0.9),
        make_bars(700, 2, 0.05, scale=1e14, still=0.5),
        make_bars(300, 3, still=1.0),
        make_bars(1),
        make_bars(0),
    ],
    ids=["plain", "tiny", "huge", "constant", "one", "none"],
)
def test_batch_equals_stream(bars):
    names = OBSERVED + POINTS + SHORT
    batch = ft.compute(names, bars)
    assert_same_bits(batch, stream(names, bars)[0])
    for name, column in zip(names, batch.T, strict=True):
        ready = ft.warmup([name])
        assert np.isnan(column[:ready]).all()
        assert np.isfinite(column[ready:]).all()


price, flag = st.sampled_from([1e-9, 1.0, 2.0, 1e13]) | st.floats(1e-9, 1e13), st.booleans()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(price, price, price, price, st.floats(0, 1e12), flag), max_size=40))
def test_batch_equals_stream_on_any_numbers(rows):
    times = clock(len(rows), MINUTES)[0]
    bars = Quotes(times, *np.array(rows, float).reshape(-1, 6).T)
    assert_same_bits(ft.compute(SHORT, bars), stream(SHORT, bars)[0])


def test_every_feature_has_a_reference():
    assert set(REFERENCES) == set(ft.REGISTRY)
    assert set(ft.REGISTRY) == {split_name(n)[0] for n in OBSERVED + POINTS}


@pytest.mark.parametrize("name", OBSERVED + POINTS)
def test_equals_slow_reference(name):
    bars = make_bars(400, 4, roll_share=0.02)
    found, reference = ft.compute([name], bars)[:, 0], Reference(bars)
    stem, lengths = split_name(name)
    rows = range(ft.warmup([name]), len(found), 7)
    expected = [REFERENCES[stem](reference, t, *lengths) for t in rows]
    np.testing.assert_allclose(found[rows], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("rsi_14", 14),
        ("price_ema_20", 19),
        ("ewma_momentum_10", 10),
        ("macd_12_26_9", 33),
        ("macd_line_12_26", 25),
        ("atr_14", 14),
        ("atr_ratio_14", 14),
    ],
)
def test_recursive_means_are_seeded_by_their_first_values(name, first):
    bars = make_bars(60, 13)
    stem, lengths = split_name(name)
    found = ft.parse(name).read(Batch(bars))  # without the mask of the warm-up
    expected = [REFERENCES[stem](Reference(bars), t, *lengths) for t in range(first, 60)]
    assert np.isnan(found[:first]).all()
    np.testing.assert_allclose(found[first:], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.slow
def test_batch_equals_stream_on_a_million_bars():
    names = (*ft.TACTICAL_FEATURES, *POINTS, "crisis_5520", "minutes_to_break")
    bars = make_bars(1_000_000, 16, roll_share=1e-4)
    assert_same_bits(ft.compute(names, bars), stream(names, bars)[0])


def test_a_session_from_its_first_bar_to_its_last():
    bars = make_bars(276, 17)
    place, left, last_hour, regular = ft.compute(TIMED, bars).T
    assert [place[0], place[137], place[-1]] == pytest.approx([-1 + 2 / 276, 0, 1], abs=1e-15)
    assert [left[0], left[137], left[-1]] == pytest.approx([275 / 276, 0.5, 0], abs=1e-15)
    assert last_hour[-14:] == pytest.approx([1, 1, *(np.arange(11, -1, -1) / 12)], abs=1e-15)
    np.testing.assert_array_equal(regular > 0, regular_hours(bars.time))
    assert (regular > 0).sum() == 6.5 * 12


# what features may and may not depend on


def test_later_bars_change_nothing_before():
    names, bars, other = OBSERVED + POINTS, make_bars(600, 5, 0.02), make_bars(600, 6, 0.2)
    other.time = other.time + 60 * MINUTE
    before = ft.compute(names, bars)
    for t in np.random.default_rng(0).integers(0, 599, 20):
        mixed = (
            np.append(a, b)
            for a, b in zip(
                vars(bars.rows(slice(t + 1))).values(),
                vars(other.rows(slice(t + 1, None))).values(),
                strict=True,
            )
        )
        after = ft.compute(names, Quotes(*mixed))
        assert_same_bits(after[: t + 1], before[: t + 1])
        assert not np.array_equal(after[t + 1 :], before[t + 1 :], equal_nan=True)


def test_half_life_weight():
    assert half_life_weight(1) == 0.5
    with decimal.localcontext(prec=3):
        found = [half_life_weight(n) for n in (2, 20, 99_999)]
    assert found == pytest.approx([1 - 0.5 ** (1 / n) for n in (2, 20, 99_999)], rel=1e-9)
    assert found[0] == 0.2928932188134524756  # 1 − 1/√2


def test_momentum_of_a_random_walk_is_in_sigmas():
    moves = np.random.default_rng(15).normal(0, 1e-3, 200_000)
    bars = quotes(np.cumprod(1 + moves), np.ones(len(moves)))
    found = ft.compute(["momentum_5", "ewma_momentum_10", "ewma_momentum_50"], bars)
    assert np.nanstd(found, axis=0) == pytest.approx([1, 1, 1], abs=0.03)


def with_gap(bars, at, factor=1.0, points=0.0):
    gap = np.arange(len(bars.close)) >= at
    moved = {
        k: np.where(gap, getattr(bars, k) * factor + points, getattr(bars, k))
        for k in ("open", "high", "low", "close")
    }
    return replace(bars, **moved, roll=bars.roll | (np.arange(len(gap)) == at))


@pytest.mark.parametrize(
    ("names", "gap", "tolerance"),
    [
        (OBSERVED, {"factor": 1.01}, 1e-12),
        (("atr_14", "change_std_20"), {"points": 150.0}, 1e-9),
    ],
    ids=["observed", "points"],
)
def test_roll_gaps_are_not_seen(names, gap, tolerance):
    bars = rolled = make_bars(600, 7)
    for at in (300, 340, 341, 390, 450):
        rolled = with_gap(rolled, at, **gap)
    expected, found = ft.compute(names, bars), ft.compute(names, rolled)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=tolerance)
    unmarked = ft.compute(names, replace(rolled, roll=bars.roll))
    seen = abs(unmarked - expected)[300:].max(axis=0) > 100 * tolerance
    assert all(seen | np.char.startswith(names, "volume_") | np.isin(names, TIMED))


def test_first_bar_has_no_gap_before_it():
    bars = make_bars(200, 14)
    marked = replace(bars, roll=np.arange(200) == 0)
    assert_same_bits(ft.compute(OBSERVED, marked), ft.compute(OBSERVED, bars))


@pytest.mark.parametrize("start", [1, 37, 200])
def test_windows_do_not_know_where_the_file_begins(start):
    bars = make_bars(600, 8)
    whole = ft.compute(WINDOWED, bars)
    cut = ft.compute(WINDOWED, bars.rows(slice(start, None)))
    for name, a, b in zip(WINDOWED, cut.T, whole.T, strict=True):
        ready = ft.warmup([name])
        assert_same_bits(a[ready:], b[start + ready :])


@pytest.mark.parametrize("name", RECURSIVE)
def test_recursive_means_forget_their_seed(name):
    bars = make_bars(2_000, 9, roll_share=0.005)
    whole, ready = ft.compute([name], bars)[:, 0], ft.warmup([name])
    error = [
        abs(ft.compute([name], bars.rows(slice(s, None)))[ready, 0] - whole[s + ready])
        for s in range(200, 1_500, 50)
    ]
    assert 0 < max(error) < 3e-3 * np.nanstd(whole)


@pytest.mark.parametrize("name", WINDOWED)
def test_warmup_is_no_longer_than_needed(name):
    bars, ready = make_bars(100, 10), ft.warmup([name])
    values, columns = [], vars(bars).items()
    for scale in (0.5, 2.0):
        first = {
            k: np.append(a[:1] * scale, a[1:]) for k, a in columns if k not in ("time", "roll")
        }
        values.append(ft.compute([name], replace(bars, **first))[ready, 0])
    assert values[0] != values[1]


def test_warmup_of_lists():
    assert ft.warmup(["return_60"]) == 60
    assert ft.warmup(["volume_10"]) == 9
    assert ft.warmup(["momentum_5", "volatility_20"]) == 20
    assert ft.warmup(["rsi_14"]) == ft.warmup(["atr_14"]) == 1 + 13 + 7 * 14
    assert ft.warmup(ft.TACTICAL_FEATURES) == 112
    assert ft.warmup(ft.STRATEGIC_FEATURES) == 25 + 95 + 8 + 35
    assert ft.warmup(["seasonal_return"]) == 1
    assert ft.warmup(["annual_volatility_920"]) == 23  # one block
    assert ft.warmup(["sma_cross"]) == 19
    assert ft.warmup([]) == 0


def test_still_market_is_exactly_neutral():
    c = np.full(300, 15_000.1)
    names = [name for name in OBSERVED if name not in TIMED]
    found = ft.compute(names, quotes(c, np.full(300, 7.3)))[-1]
    never = ("higher_highs_10", "lower_lows_10", *REGIME[1:])
    assert found.tolist() == [-1.0 if name in never else 0.0 for name in names]


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("momentum_5", 2 * 5**0.5),
        ("ewma_momentum_3", (2 / (1 - 0.5 ** (1 / 3)) - 1) ** 0.5),
        ("rsi_14", 1),
        ("volume_trend_20", 6),
        ("channel_20", 1),
        ("money_flow_14", 1),
    ],
)
def test_bounds(name, bound):
    c = 100 * np.append(np.ones(300), 1.5 ** np.arange(1, 30))
    top = ft.compute([name], quotes(c, np.append(np.zeros(328), 9.0)))[200:].max()
    assert 0.75 * bound < top <= bound


# sums in blocks


@pytest.mark.parametrize(
    ("n", "size"), [(1, 1), (2, 1), (7, 1), (9, 3), (12, 3), (40, 5), (720, 24), (920, 23)]
)
def test_blocks_are_the_window(n, size):
    values = np.random.default_rng(n).normal(0, 1, 2_500)
    values[0] = np.nan
    x = Batch(make_bars(2_500))
    assert block(n) == size
    sums, found = x.block_sums(values, n), x.long_mean(values, n)
    assert len(sums) == n // size
    for t in (size, size + 1, 2 * size + 3, n - 1, n, n + 1, 2_499):
        used = min(n, t // size * size)
        if used:
            assert found[t] == pytest.approx(values[t - used + 1 : t + 1].mean(), abs=1e-14)
        for age, added in enumerate(reversed(sums)):
            end = t - age * size
            inside = values[max(0, end - size + 1) : end + 1]
            if end >= size:
                assert added[t] == pytest.approx(inside.sum(), abs=1e-12)
            else:
                assert np.isnan(added[t])
    assert np.isnan(found[:size]).all()
    assert np.isfinite(found[size:]).all()


def test_long_windows_take_few_steps_and_remember_little():
    reader = ft.FeatureStream(["annual_volatility_920"], MINUTES)
    bars = [tuple(bar) for bar in make_bars(2)]
    reader.update(*bars[0])
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += event == "call"

    sys.setprofile(count)
    try:
        reader.update(*bars[1])
    finally:
        sys.setprofile(None)
    assert steps < 500  # two windows
    lengths = sorted(len(slot) for slot in reader.state()["slots"])
    assert lengths[-6:] == [23, 23, 898, 898, 1_441, 1_441]  # blocks, their windows, times of day


def test_annual_volatility_of_a_random_walk():
    rng, sd = np.random.default_rng(18), 0.2 / np.sqrt(252 * 276)
    moves = rng.normal(0, sd, 60_000)
    found = ft.compute(["annual_volatility_5520"], quotes(np.cumprod(1 + moves), np.ones(60_000)))
    assert found[40_000:].mean() == pytest.approx(0.2, rel=0.02)
    half = ft.compute(
        ["annual_volatility_5520"], quotes(np.cumprod(1 + moves / 2), np.ones(60_000))
    )
    np.testing.assert_allclose(half[100:], found[100:] / 2, rtol=1e-9)


def test_annual_volatility_is_that_of_the_bars_own_length():
    bars = make_bars(2_000, 19)
    bars.time = clock(2_000, 30)[0]
    bars.minutes = 30
    x, short, calm = ft.compute(["annual_volatility_40", "return_1", "seasonal_return"], bars).T
    mean = lambda a: np.convolve(a[1:] ** 2, np.ones(40), "valid")  # noqa: E731
    found = np.sqrt(mean(short) / mean(short / calm))
    np.testing.assert_allclose(x[40:], found * np.sqrt(252 * 46), rtol=1e-12)


def test_seasonal_return_has_no_time_of_day():
    T = 276 * 200
    slot = np.arange(T) % 276
    moves = np.random.default_rng(20).normal(0, 1e-3, T) * (1 + 4 * (slot < 60))
    raw, calm = ft.compute(
        ["return_1", "seasonal_return"], quotes(np.cumprod(1 + moves), np.ones(T))
    )[276 * 50 :].T
    wild = slot[276 * 50 :] < 60
    assert abs(raw[wild]).mean() / abs(raw[~wild]).mean() > 4.8
    assert abs(calm[wild]).mean() / abs(calm[~wild]).mean() == pytest.approx(1, abs=0.02)
    assert abs(calm).mean() == pytest.approx(abs(raw).mean(), rel=0.02)  # the season has mean 1


def test_annual_volatility_of_real_bars(shared_data):
    bars, _ = load(shared_data / "NQ - 30 min - ETH.csv", 30)
    found = ft.compute(["annual_volatility_920"], bars)[:, 0]
    assert np.median(found[1_000:]) == pytest.approx(0.19, abs=0.01)
    assert 0.1 < found[60:920].min() < found[60:920].max() < 0.35  # nor is it wild while young


# the stream's state


@pytest.mark.parametrize("cut", [0, 1, 30, 250])
def test_state_round_trip(cut):
    names, bars = OBSERVED + POINTS, make_bars(320, 11, roll_share=0.02)
    expected = ft.compute(names, bars)[cut:]
    _, reader = stream(names, bars.rows(slice(cut)))
    text, copy = json.dumps(reader.state(), allow_nan=False), pickle.loads(pickle.dumps(reader))
    rest = bars.rows(slice(cut, None))
    assert_same_bits(stream(names, rest, json.loads(text))[0], expected)
    assert_same_bits(np.array([copy.update(*bar) for bar in rest]), expected)
    assert json.dumps(reader.state()) == text  # a state is a copy, not a view


@pytest.mark.parametrize("cut", [0, 1, 30, 250])
def test_stream_goes_on_after_a_file(cut):
    names, bars = OBSERVED + POINTS + SHORT, make_bars(320, 11, roll_share=0.02)
    reader, values = ft.FeatureStream.after(names, bars.rows(slice(cut)))
    seen, other = stream(names, bars.rows(slice(cut)))
    assert_same_bits(values, seen)
    if cut:
        assert reader.state() == other.state()
    rest = bars.rows(slice(cut, None))
    assert_same_bits(np.array([reader.update(*bar) for bar in rest]), ft.compute(names, bars)[cut:])


def test_state_of_another_stream_is_refused():
    state = ft.FeatureStream(["rsi_14"], 5).state()
    with pytest.raises(ValueError, match=r"holds names \['rsi_14'\]; expected \['rsi_15'\]"):
        ft.FeatureStream(["rsi_15"], 5).restore(state)
    with pytest.raises(ValueError, match="holds minutes 5; expected 30"):
        ft.FeatureStream(["rsi_14"], 30).restore(state)


# names


def test_lengths_may_be_left_out():
    bars = make_bars(300, 12)
    short, full = ft.compute(["macd", "rsi"], bars), ft.compute(["macd_12_26_9", "rsi_14"], bars)
    assert_same_bits(short, full)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retrun_60", "did you mean 'return_60'"),
        ("price_smaa_20", "did you mean 'price_sma_20'"),
        ("zzz", "known: annual_volatility, atr, atr_ratio"),
        ("", "known: annual_volatility, atr"),
        ("return", "expected return_LENGTH"),
        ("rsi_0", "from 1 to 99999"),
        ("rsi_14_3", "expected rsi_LENGTH"),
        ("rsi_-4", "unknown feature"),
        ("macd_26_12_9", "'macd_26_12_9': got fast 26 and slow 12"),
        ("macd_line_9_9", "got fast 9 and slow 9"),
        ("sma_cross_20_5", "'sma_cross_20_5': got fast 20 and slow 5"),
        ("sma_cross_5_5", "the fast length must be the smaller"),
        ("annual_volatility", "expected annual_volatility_LENGTH, whole numbers"),
        ("seasonal_return_3", "expected seasonal_return, without lengths"),
        ("crisis", "expected crisis_LENGTH, whole numbers"),
        ("time_of_day_5", "expected time_of_day, without lengths"),
        ("ewma_momentum_0", "expected ewma_momentum_HALF_LIFE"),
    ],
)
def test_bad_names_are_explained(name, message):
    for use in (ft.warmup, lambda names: ft.FeatureStream(names, MINUTES), ft.describe):
        with pytest.raises(ValueError, match=message):
            use([name])


def test_describe():
    found = ft.describe([*OBSERVED, *POINTS])
    assert list(found) == [*OBSERVED, *POINTS]
    assert found["return_60"] == "Close / close 60 bars ago − 1; fraction."
    assert found["macd_12_26_9"] == "MACD histogram (12, 26, 9) / close; fraction."
    assert not any("{" in line or "\n" in line for line in found.values())


def test_describe_without_names_lists_every_feature():
    found = ft.describe()
    assert found["return_LENGTH"] == "Close / close LENGTH bars ago − 1; fraction."
    assert (
        found["macd_FAST_SLOW_SIGNAL"] == "MACD histogram (FAST, SLOW, SIGNAL) / close; fraction."
    )
    assert {"time_of_day", "minutes_to_break_WITHIN", "crisis_LENGTH"} <= set(found)
    assert list(found) == sorted(found)
    assert len(found) == len(ft.REGISTRY) == len(set(found.values()))


def imports(module):
    tree = ast.parse(
        (Path(ft.__file__).parents[2] / f"{module.replace('.', '/')}.py").read_text("utf-8")
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "gm_jax.market" else [node.module]


def test_modules_can_be_carried_away():
    """An exported model carries these files; they need no more than the standard library beside."""
    carried, seen = ["gm_jax.market.features"], set()
    for module in carried:
        found = set(imports(module))
        seen |= {name.split(".")[0] for name in found}
        carried += sorted(n for n in found if n.startswith("gm_jax") and n not in carried)
    market = ("features", "registry", "readers", "ops", "calendar", "regimes")
    families = ("price_features", "volume_features", "time_features")
    assert set(carried) == {f"gm_jax.market.{name}" for name in market + families}
    assert seen - set(sys.stdlib_module_names) == {"gm_jax", "numpy", "pandas"}
