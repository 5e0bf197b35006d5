"""Regimes: shares and meaning on real bars, the definition by pandas, and what it is made of."""

import numpy as np
import pandas as pd
import pytest

from gm_jax.market import features as ft
from gm_jax.market.calendar import MINUTE, minute_of_session
from gm_jax.market.loader import load
from gm_jax.market.readers import Batch
from gm_jax.market.regimes import REGIME_WINDOW, REGIMES, unlabelled
from tests.market.feature_reference import make_bars, regimes


WINDOW = REGIME_WINDOW[30]


@pytest.fixture(scope="module")
def real(shared_data):
    """Return (bars, label of every bar) of three and a half years."""
    bars, _ = load(shared_data / "NQ - 30 min - ETH.csv", 30)
    return bars, ft.compute([f"regime_{WINDOW}"], bars)[:, 0].astype(int)


def test_names_and_windows_are_frozen():
    expected = ("NORMAL", "BULL_TREND", "BEAR_TREND", "CRISIS", "VOLATILE", "CONSOLIDATION")
    assert expected == REGIMES
    assert REGIME_WINDOW == {5: 20 * 276, 30: 50 * 46}


def test_shares_of_real_bars(real):
    bars, labels = real
    known = labels[unlabelled(WINDOW, len(bars)) :]
    shares = dict(zip(REGIMES, np.bincount(known) / len(known) * 100, strict=True))
    assert shares == pytest.approx(
        {
            "CRISIS": 3.8,
            "VOLATILE": 12.1,
            "BULL_TREND": 15.4,
            "BEAR_TREND": 10.2,
            "CONSOLIDATION": 23.1,
            "NORMAL": 35.3,
        },
        abs=0.3,
    )
    assert 28 < np.mean(labels == 0) * 100 < 45  # with the bars before the window is full


def test_regimes_tell_what_volatility_follows(real):
    bars, labels = real
    with np.errstate(all="ignore"):
        x = Batch(bars)
        calm = pd.Series(x.returns / x.season(x.absolute(x.returns)))
    ahead = calm.rolling(20).std().shift(-20)
    found = [ahead[labels == REGIMES.index(name)].mean() * 1e4 for name in REGIMES[3:]]
    assert found == pytest.approx([27, 23, 13], abs=1)  # CRISIS, VOLATILE, CONSOLIDATION; bp


@pytest.mark.parametrize(("drift", "least"), [(lambda r: r - 1, 0.9999), (np.log, 0.999)])
def test_definition_by_pandas(real, drift, least):
    """The second takes the logarithm that the usual definition has and the language has not."""
    bars, labels = real
    with np.errstate(all="ignore"):
        closes = Batch(bars).close
    expected = regimes(closes, minute_of_session(bars.time), WINDOW, drift)
    assert np.mean(labels == expected) > least


@pytest.mark.parametrize("length", [1, 40, 300])
def test_normal_until_the_window_is_full(length):
    bars = make_bars(1_000, 3)
    found, first = ft.compute([f"regime_{length}"], bars)[:, 0], unlabelled(length, 1_000)
    assert first == 20 + length
    assert not found[:first].any()
    assert found[first : first + 20].any()
    assert unlabelled(length, 7) == 7
    assert ft.warmup([f"regime_{length}", f"crisis_{length}"]) == 0  # NORMAL is an answer


def test_one_label_is_one_feature():
    names = [f"{name.lower()}_200" for name in REGIMES[1:]]
    regime, *flags = ft.compute(["regime_200", *names], make_bars(3_000, 4)).T
    assert set(regime) == set(range(len(REGIMES)))
    for k, flag in enumerate(flags, start=1):
        np.testing.assert_array_equal(flag, np.where(regime == k, 1, -1))


@pytest.mark.parametrize("n", [1, 2, 50])
def test_percentiles_are_lower_order_statistics(n):
    values = np.random.default_rng(0).integers(0, 9, 400).astype(float)  # with many ties
    values[:3] = np.nan
    found = np.transpose(Batch(make_bars(400)).percentiles(values, n, (0, 30, 97, 100)))
    assert np.isnan(found[: 3 + n]).all()
    expected = [
        np.percentile(values[t - n : t], (0, 30, 97, 100), method="lower")
        for t in range(3 + n, 400)
    ]
    np.testing.assert_array_equal(found[3 + n :], expected)


def test_season_by_hand():
    bars = make_bars(6)
    bars.time = np.array([0, 5, 0, 5, 0, 5]) * MINUTE  # two times of day
    found = Batch(bars).season(np.array([np.nan, 3.0, 1.0, 5.0, 2.0, 9.0]))
    before = [1, 1, 1, 3 / 2, 1 / 3, 4 / (11 / 4)]
    assert found == pytest.approx(before, rel=1e-15)
