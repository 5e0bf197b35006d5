"""Features: both readers, references, causality, rolls, warm-up, state, errors."""

import ast
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_jax.market import features as ft
from gm_jax.market.ops import Batch
from tests.market.feature_reference import REFERENCES, Quotes, Reference, make_bars


POINTS = ("atr_14", "change_std_20", "mean_notional_20")
OBSERVED = (*dict.fromkeys(ft.TACTICAL_FEATURES + ft.STRATEGIC_FEATURES), "channel_20")
RECURSIVE = ("rsi_14", "macd_12_26_9", "atr_14")
WINDOWED = tuple(n for n in OBSERVED + POINTS if n not in RECURSIVE)
SHORT = tuple(
    f"{stem}_{lengths}"
    for stem in sorted(ft.REGISTRY)
    for lengths in (["1_2_2"] if stem == "macd" else ["1", "3"])
)


def stream(names, bars, state=None):
    reader = ft.FeatureStream(names)
    if state is not None:
        reader.restore(state)
    return np.array([reader.update(*bar) for bar in bars]).reshape(-1, len(names)), reader


def assert_same_bits(a, b):
    bits = [np.where(np.isnan(v), np.nan, v).view(np.int64) for v in (a, b)]
    np.testing.assert_array_equal(*bits, strict=True)


# both readers give the same bits


@pytest.mark.parametrize(
    "bars",
    [
        make_bars(5_000, roll_share=0.01),
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
    bars = Quotes(*np.array(rows, float).reshape(-1, 6).T)
    assert_same_bits(ft.compute(SHORT, bars), stream(SHORT, bars)[0])


def test_every_feature_has_a_reference():
    assert set(REFERENCES) == set(ft.REGISTRY)
    assert set(ft.REGISTRY) == {n.rstrip("_0123456789") for n in OBSERVED + POINTS}


@pytest.mark.parametrize("name", OBSERVED + POINTS)
def test_equals_slow_reference(name):
    bars = make_bars(400, 4, roll_share=0.02)
    found, reference = ft.compute([name], bars)[:, 0], Reference(bars)
    stem = name.rstrip("_0123456789")
    lengths = [int(n) for n in name[len(stem) + 1 :].split("_")]
    rows = range(ft.warmup([name]), len(found), 7)
    expected = [REFERENCES[stem](reference, t, *lengths) for t in rows]
    np.testing.assert_allclose(found[rows], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("name", "first"), [("rsi_14", 14), ("macd_12_26_9", 33), ("atr_14", 14)])
def test_recursive_means_are_seeded_as_in_talib(name, first):
    bars = make_bars(60, 13)
    stem, _, lengths = name.partition("_")
    found = ft.parse(name).read(Batch(bars))  # without the mask of the warm-up
    expected = [
        REFERENCES[stem](Reference(bars), t, *map(int, lengths.split("_")))
        for t in range(first, 60)
    ]
    assert np.isnan(found[:first]).all()
    np.testing.assert_allclose(found[first:], expected, rtol=1e-9, atol=1e-13)


# what features may and may not depend on


def test_later_bars_change_nothing_before():
    names, bars, other = OBSERVED + POINTS, make_bars(600, 5, 0.02), make_bars(600, 6, 0.2)
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
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    unmarked = ft.compute(names, replace(rolled, roll=bars.roll))
    seen = abs(unmarked - expected)[300:].max(axis=0) > 100 * tolerance
    assert all(seen | np.char.startswith(names, "volume_"))


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
    values = []
    for scale in (0.5, 2.0):
        first = Quotes(*(np.append(a[:1] * scale, a[1:]) for a in vars(bars).values()))
        values.append(ft.compute([name], first)[ready, 0])
    assert values[0] != values[1]


def test_warmup_of_lists():
    assert ft.warmup(["return_60"]) == 60
    assert ft.warmup(["volume_10"]) == 9
    assert ft.warmup(["momentum_5", "volatility_20"]) == 20
    assert ft.warmup(["rsi_14"]) == ft.warmup(["atr_14"]) == 1 + 13 + 7 * 14
    assert ft.warmup(ft.TACTICAL_FEATURES) == 112
    assert ft.warmup(ft.STRATEGIC_FEATURES) == 25 + 95 + 8 + 35
    assert ft.warmup([]) == 0


def test_still_market_is_exactly_neutral():
    c = np.full(300, 15_000.1)
    found = ft.compute(OBSERVED, Quotes(c, c, c, c, np.full(300, 7.3), np.zeros(300, bool)))[-1]
    neutral = {"higher_highs_10": -1.0, "lower_lows_10": -1.0}
    assert found.tolist() == [neutral.get(name, 0.0) for name in OBSERVED]


@pytest.mark.parametrize(
    ("name", "bound"),
    [("momentum_5", 2 * 5**0.5), ("rsi_14", 1), ("volume_trend_20", 6), ("channel_20", 1)],
)
def test_bounds(name, bound):
    c = 100 * np.append(np.ones(300), 1.5 ** np.arange(1, 30))
    jump = Quotes(c, c, c, c, np.append(np.zeros(328), 9.0), np.zeros(329, bool))
    top = ft.compute([name], jump)[200:].max()
    assert 0.75 * bound < top <= bound


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


def test_state_of_other_features_is_refused():
    state = ft.FeatureStream(["rsi_14"]).state()
    with pytest.raises(ValueError, match=r"holds \['rsi_14'\]; expected \['rsi_15'\]"):
        ft.FeatureStream(["rsi_15"]).restore(state)


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
        ("zzz", "known: return, volatility"),
        ("", "known: return"),
        ("return", "expected return_LENGTH"),
        ("rsi_0", "from 1 to 99999"),
        ("rsi_14_3", "expected rsi_LENGTH"),
        ("rsi_-4", "unknown feature"),
        ("macd_26_12_9", "'macd_26_12_9': got fast 26 and slow 12"),
    ],
)
def test_bad_names_are_explained(name, message):
    for use in (ft.warmup, ft.FeatureStream, ft.describe):
        with pytest.raises(ValueError, match=message):
            use([name])


def test_describe():
    found = ft.describe([*OBSERVED, *POINTS])
    assert list(found) == [*OBSERVED, *POINTS]
    assert found["return_60"] == "Close / close 60 bars ago − 1; fraction."
    assert found["macd_12_26_9"] == "MACD histogram (12, 26, 9) / close; fraction."
    assert not any("{" in line or "\n" in line for line in found.values())


def test_modules_can_be_carried_away():
    seen = set()
    for module in ("features", "ops"):
        tree = ast.parse(Path(ft.__file__).with_name(f"{module}.py").read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                seen |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                seen.add(node.module)
    assert {name for name in seen if name.startswith("gm_jax")} == {"gm_jax.market.ops"}
    assert not seen & {"jax", "jax.numpy", "pandas", "torch", "flax"}
