"""Features: every indicator written once, for training and for deployment alike.

To add one, write a function of `x` (see `Ops`) and whole-number lengths under `@feature` in the
module of its family; its name with lengths, such as `rsi_14`, is then known everywhere, lengths
with a default may be left out from the right, and its docstring is its entry in `describe`. Values
before a feature's warm-up are NaN. Prices must be positive and finite.

An exported model carries this file and what it imports: NumPy and pandas suffice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm_jax.market import (  # noqa: F401 - each enters its features into the registry
    price_features,
    regimes,
    time_features,
    volume_features,
)
from gm_jax.market.ops import NAN
from gm_jax.market.readers import BarArrays, Batch, Stream
from gm_jax.market.registry import REGISTRY, define, form, parameters, parse


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


def warmup(names: Sequence[str]) -> int:
    """Return the index of the first bar at which every feature is usable: rows [warmup:] are.

    Windows need the bars they span. A recursive mean (rsi, macd, atr) needs its seed and then 7
    time constants, until the seed weighs less than 1/1000.
    """
    return max((parse(name).warmup for name in names), default=0)


def describe(names: Sequence[str] | None = None) -> dict[str, str]:
    """Return definition and unit of each feature, one line each; without names, of all there are.

    Raises:
        ValueError: no such feature, or lengths it cannot take.
    """
    if names is not None:
        return {name: parse(name).definition for name in names}
    return {
        form(stem): define(function, {p.name: p.name.upper() for p in parameters(stem)})
        for stem, function in sorted(REGISTRY.items())
    }


def compute(names: Sequence[str], bars: BarArrays) -> np.ndarray:
    """Return the features [T, F] f64 of all bars, NaN before each one's warm-up.

    Row t uses bars up to and including t. Equals `FeatureStream` bit for bit.
    """
    return FeatureStream.after(names, bars)[1]


class FeatureStream:
    """The same features one bar at a time, at constant cost per bar.

    Args:
        names: features, in the order of the values.
        minutes: length of a bar.
    """

    def __init__(self, names: Sequence[str], minutes: int) -> None:
        self.names = tuple(names)
        self.minutes = minutes
        self._features = [(f, f.warmup) for f in map(parse, names)]
        self._x, self._bars = Stream(minutes), 0

    @classmethod
    def after(cls, names: Sequence[str], bars: BarArrays) -> tuple[FeatureStream, np.ndarray]:
        """Return a stream that has seen all bars, and what `compute` says of them, [T, F] f64."""
        stream, values = cls(names, bars.minutes), np.full((len(bars.close), len(names)), NAN)
        with np.errstate(all="ignore"):
            x = Batch(bars)
            for column, (f, ready) in enumerate(stream._features):
                values[ready:, column] = f.read(x)[ready:]
        stream._bars, stream._x.slots = len(bars.close), x.slots
        return stream, values

    @property
    def bars(self) -> int:
        """How many bars the stream has seen."""
        return self._bars

    def update(
        self,
        minute: float,
        open: float,
        high: float,
        low: float,
        close: float,
        volume: float,
        roll: bool,
    ) -> list[float]:
        """Take the next closed bar; return its features, NaN before each one's warm-up.

        Args:
            minute: when the bar opened, in minutes since 18:00 New York (`minute_of_session`).
            open: points.
            high: points.
            low: points.
            close: points.
            volume: contracts.
            roll: the contract changed between the last bar and this one.
        """
        self._x.rewind()
        self._x.minute = float(minute)
        self._x.load([float(q) for q in (open, high, low, close, volume)], bool(roll))
        values = [(f.read(self._x), ready) for f, ready in self._features]
        self._bars += 1
        return [value if self._bars > ready else NAN for value, ready in values]

    def state(self) -> dict[str, Any]:
        """Return everything the next bar depends on: plain lists and numbers, null for NaN."""
        slots = [[None if v != v else v for v in slot] for slot in self._x.slots]
        own = {"names": list(self.names), "minutes": self.minutes}
        return {**own, "bars": self._bars, "slots": slots}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`, bit for bit.

        Raises:
            ValueError: the state belongs to other features or another length of a bar.
        """
        for key, own in (("names", list(self.names)), ("minutes", self.minutes)):
            if state[key] != own:
                raise ValueError(
                    f"the feature state holds {key} {state[key]}; expected {own}: restore it into "
                    "a stream of the same features in the same order, and of the same bars"
                )
        self._bars = state["bars"]
        self._x.slots = [[NAN if v is None else v for v in slot] for slot in state["slots"]]
