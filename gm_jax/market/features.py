"""Features: every indicator written once, for training and for deployment alike.

To add one, write a function of `x` (see `Ops`) and whole-number lengths under `@feature`; its name
with lengths, such as `rsi_14`, is then known everywhere, lengths with a default may be left out
from the right, and its docstring is its entry in `describe`. Observation features are centred and
scaled by definition and do not see roll gaps. Values before a feature's warm-up are NaN.

NumPy only, so that an exported model can carry this file; prices must be positive and finite.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm_jax.market.ops import NAN, BarArrays, Batch, Ops, Stream, Value, Warmup


TACTICAL_FEATURES = (
    "return_60",
    "volatility_20",
    "volume_10",
    "momentum_5",
    "rsi_14",
    "price_sma_20",
)
STRATEGIC_FEATURES = (
    "return_8",
    "return_24",
    "return_48",
    "volatility_16",
    "volatility_32",
    "volume_ratio_20",
    "volume_trend_20",
    "rsi_14",
    "bollinger_20",
    "macd_12_26_9",
    "higher_highs_10",
    "lower_lows_10",
)

REGISTRY: dict[str, Callable[..., Value]] = {}


def feature(function: Callable[..., Value]) -> Callable[..., Value]:
    """Register a feature under its function's name (`return_` as `return`)."""
    REGISTRY[function.__name__.rstrip("_")] = function
    return function


@feature
def return_(x: Ops, length: int) -> Value:
    """Close / close {length} bars ago − 1; fraction."""
    past = x.lag(x.close, length)
    return x.ratio(x.close - past, past)


@feature
def volatility(x: Ops, length: int = 20) -> Value:
    """Population standard deviation of the last {length} one-bar returns; fraction per bar."""
    return x.std(x.returns, length)


@feature
def volume(x: Ops, length: int = 10) -> Value:
    """Volume / mean volume of {length} bars − 1; 0 without any volume; pure number."""
    usual = x.mean(x.volume, length)
    return x.ratio(x.volume - usual, usual)


@feature
def momentum(x: Ops, length: int = 5) -> Value:
    """Sum of {length} one-bar returns / (√{length} · their rms over 4·{length} bars); sigmas."""
    # A random walk gives standard deviation 1 whatever the volatility; |value| ≤ 2 √length.
    squares = x.sum(x.returns * x.returns, 4 * length)
    return x.ratio(x.sum(x.returns, length) * 2, x.sqrt(squares))


@feature
def rsi(x: Ops, length: int = 14) -> Value:
    """RSI {length} (Wilder) / 50 − 1, in −1..1; 0 when nothing moved; pure number."""
    move = x.change * x.factor  # one scale on both sides of a roll
    gain = x.maximum(0.0, move)
    up, down = x.wilder(gain, length), x.wilder(gain - move, length)
    return x.ratio(up - down, up + down)


@feature
def price_sma(x: Ops, length: int = 20) -> Value:
    """Close / mean close of {length} bars − 1; fraction."""
    usual = x.mean(x.close, length)
    return x.ratio(x.close - usual, usual)


@feature
def bollinger(x: Ops, length: int = 20) -> Value:
    """(Close − mean) / (2 · standard deviation) of {length} closes; ±1 at the bands."""
    return x.ratio(x.close - x.mean(x.close, length), 2 * x.std(x.close, length))


@feature
def macd(x: Ops, fast: int = 12, slow: int = 26, signal: int = 9) -> Value:
    """MACD histogram ({fast}, {slow}, {signal}) / close; fraction."""
    if fast >= slow:
        raise ValueError(f"got fast {fast} and slow {slow}; the fast length must be the smaller")
    # Both averages begin at the same bar.
    line = x.ema(x.close, fast, delay=slow - fast) - x.ema(x.close, slow)
    return x.ratio(line - x.ema(line, signal), x.close)


@feature
def volume_ratio(x: Ops, length: int = 20) -> Value:
    """Mean volume of 5 bars / mean volume of {length} bars − 1; 0 without volume; pure number."""
    usual = x.mean(x.volume, length)
    return x.ratio(x.mean(x.volume, 5) - usual, usual)


@feature
def volume_trend(x: Ops, length: int = 20) -> Value:
    """Rise of the line fitted to {length} volumes / their mean, in −6..6; pure number."""
    return x.ratio(x.slope(x.volume, length) * (length - 1), x.mean(x.volume, length))


@feature
def higher_highs(x: Ops, length: int = 10) -> Value:
    """Share of the last {length} bars with a high above the bar before, × 2 − 1; pure number."""
    return 2 * x.mean(x.where(x.high > x.lag(x.high, 1), 1.0, 0.0), length) - 1


@feature
def lower_lows(x: Ops, length: int = 10) -> Value:
    """Share of the last {length} bars with a low below the bar before, × 2 − 1; pure number."""
    return 2 * x.mean(x.where(x.low < x.lag(x.low, 1), 1.0, 0.0), length) - 1


@feature
def channel(x: Ops, length: int = 20) -> Value:
    """Close within the highest high and lowest low of {length} bars, as −1..1; pure number."""
    top, bottom = x.highest(x.high, length), x.lowest(x.low, length)
    return x.ratio((x.close - bottom) - (top - x.close), top - bottom)


@feature
def atr(x: Ops, length: int = 14) -> Value:
    """Average true range {length} (Wilder); quoted points."""
    return x.wilder(x.true_range, length)


@feature
def change_std(x: Ops, length: int = 20) -> Value:
    """Population standard deviation of the last {length} price changes; quoted points."""
    return x.std(x.change, length)


@feature
def mean_notional(x: Ops, length: int = 20) -> Value:
    """Mean of volume × quoted close over {length} bars; contracts × points."""
    return x.mean(x.volume * x.raw_close, length)


@dataclass(frozen=True)
class Feature:
    """A feature with its lengths."""

    function: Callable[..., Value]
    lengths: dict[str, int]

    def read(self, x: Ops) -> Value:
        """Evaluate the feature with a reader of the language."""
        return self.function(x, **self.lengths)

    @property
    def warmup(self) -> int:
        """Index of the first usable bar."""
        age: int = self.read(Warmup()).bars
        return age


def parse(name: str) -> Feature:
    """Turn a name such as `macd_12_26_9` into a feature.

    Raises:
        ValueError: no such feature, or lengths it cannot take; the message says what would do.
    """
    match = re.fullmatch(r"([a-z_]*?)((?:_[0-9]+)*)", name)
    stem, tail = (match[1], match[2]) if match else (name, "")
    if stem not in REGISTRY:
        near = difflib.get_close_matches(stem, REGISTRY, n=1)
        hint = f"did you mean {near[0] + tail!r}?" if near else f"known: {', '.join(REGISTRY)}"
        raise ValueError(f"unknown feature {name!r}; {hint}")
    function = REGISTRY[stem]
    parameters = list(inspect.signature(function).parameters.values())[1:]
    given = [int(n) for n in tail.split("_")[1:]]
    needed = sum(p.default is p.empty for p in parameters)
    if not needed <= len(given) <= len(parameters) or not all(0 < n < 100_000 for n in given):
        form = "_".join([stem, *(p.name.upper() for p in parameters)])
        raise ValueError(
            f"feature {name!r} has lengths that do not fit; expected {form}, "
            "whole numbers of bars from 1 to 99999"
        )
    defaults = [p.default for p in parameters[len(given) :]]
    lengths = dict(zip((p.name for p in parameters), given + defaults, strict=True))
    found = Feature(function, lengths)
    try:
        found.read(Warmup())
    except ValueError as error:
        raise ValueError(f"feature {name!r}: {error}") from None
    return found


def warmup(names: Sequence[str]) -> int:
    """Return the index of the first bar at which every feature is usable: rows [warmup:] are.

    Windows need the bars they span. A recursive mean (rsi, macd, atr) needs its seed and then 7
    time constants, until the seed weighs less than 1/1000.
    """
    return max((parse(name).warmup for name in names), default=0)


def describe(names: Sequence[str]) -> dict[str, str]:
    """Return definition and unit of each feature, one line each."""
    found = {name: parse(name) for name in names}
    return {
        name: (f.function.__doc__ or name).splitlines()[0].format(**f.lengths)
        for name, f in found.items()
    }


def compute(names: Sequence[str], bars: BarArrays) -> np.ndarray:
    """Return the features [T, F] f64 of all bars, NaN before each one's warm-up.

    Row t uses bars up to and including t. Equals `FeatureStream` bit for bit.
    """
    features = [parse(name) for name in names]
    out = np.full((len(bars.close), len(features)), NAN)
    with np.errstate(all="ignore"):
        x = Batch(bars)
        for column, f in enumerate(features):
            out[f.warmup :, column] = f.read(x)[f.warmup :]
    return out


class FeatureStream:
    """The same features one bar at a time, at constant cost per bar."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._features = [(f, f.warmup) for f in map(parse, names)]
        self._x, self._bars = Stream(), 0

    def update(
        self, open: float, high: float, low: float, close: float, volume: float, roll: bool
    ) -> list[float]:
        """Take the next closed bar; return its features, NaN before each one's warm-up."""
        self._x.rewind()
        self._x.load([float(q) for q in (open, high, low, close, volume)], bool(roll))
        values = [(f.read(self._x), ready) for f, ready in self._features]
        self._bars += 1
        return [value if self._bars > ready else NAN for value, ready in values]

    def state(self) -> dict[str, Any]:
        """Return everything the next bar depends on: plain lists and numbers, null for NaN."""
        slots = [[None if v != v else v for v in slot] for slot in self._x.slots]
        return {"names": list(self.names), "bars": self._bars, "slots": slots}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`, bit for bit.

        Raises:
            ValueError: the state belongs to other features.
        """
        if list(state["names"]) != list(self.names):
            raise ValueError(
                f"the feature state holds {list(state['names'])}; expected {list(self.names)}: "
                "restore it into a stream of the same features in the same order"
            )
        self._bars = state["bars"]
        self._x.slots = [[NAN if v is None else v for v in slot] for slot in state["slots"]]
