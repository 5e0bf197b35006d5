"""From bars to what one decision needs: a file at once, then bar by bar, with the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from gm_jax.env.units import SIMULATOR, bar_columns, bar_table, impact, require_range
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import REGULAR, minute_of_one
from gm_jax.market.features import FeatureStream


_COLUMNS = ("time", "open", "high", "low", "close", "volume", "session", "hole", "roll")


class Bar(NamedTuple):
    """What is known at the close of one bar, in the simulator's units."""

    time: int  # ns UTC, open
    row: list[int]  # [6], see `Market.bars`
    features: np.ndarray  # [F] f32, raw
    impact: np.float32  # ticks
    atr: np.float32  # ticks
    signals: np.ndarray  # [R] f32, the first of Market.signals


class Feed:
    """Features and simulator quantities of a run, over bars that are handed on in order.

    Args:
        features: names of the observed features, F of them.
        signals: names of what the team's rules read, R of them.
        minutes: length of a bar.
        warmup: first bar at which everything is known, counted from the first ever seen.
        settings: of the run; sizes and money.
    """

    def __init__(
        self,
        features: tuple[str, ...],
        signals: tuple[str, ...],
        minutes: int,
        warmup: int,
        settings: Any,
    ) -> None:
        self.names = (*features, *SIMULATOR, *signals)
        self.minutes, self.warmup, self.settings = minutes, warmup, settings
        self.last: SimpleNamespace | None = None  # the newest bar, a number in each field of Bars
        self._features = len(features)
        self._stream = FeatureStream(self.names, minutes)
        self._notional = math.inf  # last known, contracts × points

    @property
    def bars_seen(self) -> int:
        """How many bars were taken so far."""
        return self._stream.bars

    def skip(self, bars: Bars) -> None:
        """Take bars in on which nothing is decided: a history at once, what follows bar by bar."""
        if self.last is None and len(bars):
            self._stream, values = FeatureStream.after(self.names, bars)
            notional = values[self.warmup :, self._features + 1]
            self._notional = float([math.inf, *notional[notional > 0]][-1])
            self.last = _one(bars, -1)
        else:
            for _ in self.take(bars):
                pass

    def take(self, bars: Bars) -> Iterator[Bar | None]:
        """Yield what is known at each bar's close, None before the warm-up is over.

        Args:
            bars: those that follow the last one taken, or the history from its first bar.
        """
        if len(bars):
            require_range(float(bars.high.max()), self.settings)
            yield from self._begin(bars) if self.last is None else self._follow(bars)

    def _begin(self, bars: Bars) -> Iterator[Bar | None]:
        """Yield the bars of a history, computed at once."""
        self._stream, values = FeatureStream.after(self.names, bars)
        self.last = _one(bars, -1)
        rows = bar_table(bars, self.settings).astype(np.int64).tolist()
        for i, (row, known) in enumerate(zip(rows, values.tolist(), strict=True)):
            yield self._bar(_one(bars, i), row, known) if i >= self.warmup else None

    def _follow(self, bars: Bars) -> Iterator[Bar | None]:
        """Yield bars one by one, each in constant time."""
        for i in range(len(bars)):
            bar, before = _one(bars, i), self.last
            assert before is not None
            minute = minute_of_one(bar.time)
            known = self._stream.update(
                minute, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.roll
            )
            # whether it is its session's last is not known yet, and no rule of the account asks
            row = bar_columns(
                bar,
                close_before=before.close,
                regular=REGULAR[0] <= minute < REGULAR[1],
                opens=bar.session != before.session,
                ends=False,
            )
            self.last = bar
            ready = self.bars_seen > self.warmup
            yield self._bar(bar, [int(x) for x in row], known) if ready else None

    def _bar(self, bar: Any, row: list[int], values: list[float]) -> Bar:
        seen, end = self._features, self._features + len(SIMULATOR)
        deviation, notional, atr = values[seen:end]
        self._notional = notional if notional > 0 else self._notional
        return Bar(
            time=bar.time,
            row=row,
            features=np.array(values[:seen], np.float32),
            impact=np.float32(impact(bar.close, deviation / bar.tick, self._notional)),
            atr=np.float32(atr / bar.tick),
            signals=np.array(values[end:], np.float32),
        )

    def state(self) -> dict[str, Any]:
        """Return what the next bar depends on, as plain JSON types."""
        known = None if math.isinf(self._notional) else self._notional
        return {"last": vars(self.last), "notional": known, "stream": self._stream.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`, bit for bit.

        Raises:
            ValueError: the state belongs to other features.
        """
        self._stream.restore(state["stream"])
        self._notional = math.inf if state["notional"] is None else state["notional"]
        self.last = SimpleNamespace(**state["last"])


def _one(bars: Bars, i: int) -> SimpleNamespace:
    """Return one bar, a number in each field."""
    values = {name: getattr(bars, name).item(i) for name in _COLUMNS}
    return SimpleNamespace(**values, tick=bars.tick)
