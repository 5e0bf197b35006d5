"""Indicators against TA-Lib, on bars without rolls and after the warm-up."""

import numpy as np
import pytest
import talib

from gm_jax.market import features as ft
from tests.market.feature_reference import make_bars


BARS = make_bars(3_000, 21, scale=100.0)
H, L, C, V = (getattr(BARS, name) for name in ("high", "low", "close", "volume"))


def bollinger(k):
    upper, middle, lower = talib.BBANDS(C, 20, 2, 2)
    return (2 * (C - middle) / (upper - lower), (upper - lower) / middle)[k]


CASES = {
    "return_60": lambda: talib.ROC(C, 60) / 100,
    "price_sma_20": lambda: C / talib.SMA(C, 20) - 1,
    "sma_cross_5_20": lambda: talib.SMA(C, 5) / talib.SMA(C, 20) - 1,
    "price_ema_20": lambda: C / talib.EMA(C, 20) - 1,
    "rsi_14": lambda: talib.RSI(C, 14) / 50 - 1,
    "macd_12_26_9": lambda: talib.MACD(C, 12, 26, 9)[2] / C,
    "macd_line_12_26": lambda: talib.MACD(C, 12, 26, 9)[0] / C,
    "bollinger_20": lambda: bollinger(0),
    "bollinger_width_20": lambda: bollinger(1),
    "channel_20": lambda: 2 * (C - talib.MIN(L, 20)) / (talib.MAX(H, 20) - talib.MIN(L, 20)) - 1,
    "drawdown_60": lambda: C / talib.MAX(H, 60) - 1,
    "atr_14": lambda: talib.ATR(H, L, C, 14),
    "atr_ratio_14": lambda: talib.NATR(H, L, C, 14) / 100,
    "volatility_20": lambda: talib.STDDEV(talib.ROCP(C, 1), 20),
    "change_std_20": lambda: talib.STDDEV(talib.MOM(C, 1), 20),
    "volume_10": lambda: V / talib.SMA(V, 10) - 1,
    "volume_ratio_20": lambda: talib.SMA(V, 5) / talib.SMA(V, 20) - 1,
    "volume_trend_20": lambda: talib.LINEARREG_SLOPE(V, 20) * 19 / talib.SMA(V, 20),
    "volume_zscore_20": lambda: (V - talib.SMA(V, 20)) / talib.STDDEV(V, 20),
    "volume_price_20": lambda: talib.CORREL(C, V, 20),
    "money_flow_14": lambda: talib.MFI(H, L, C, V, 14) / 50 - 1,
    "vwap_20": lambda: C * talib.SUM(V, 20) / talib.SUM(talib.TYPPRICE(H, L, C) * V, 20) - 1,
    "mean_notional_20": lambda: talib.SMA(V * C, 20),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_talib(name):
    ready = ft.warmup([name])
    found, expected = ft.compute([name], BARS)[ready:, 0], CASES[name]()[ready:]
    assert np.isfinite(expected).all()
    # Relative to the size of the feature: near 0 the last digits of a difference decide.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.std(expected))


def test_macd_signal_is_line_minus_histogram():
    line, histogram = ft.compute(["macd_line_12_26", "macd_12_26_9"], BARS).T
    ready = ft.warmup(["macd_12_26_9"])
    expected = (talib.MACD(C, 12, 26, 9)[1] / C)[ready:]
    found = (line - histogram)[ready:]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.std(expected))
