"""Bars: the clean price history that everything else is computed from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Bars:
    """T consecutive bars of one instrument, oldest first, free of faults.

    A bar is stamped with its open time and becomes known at its close. Prices are in index points
    and lie on whole ticks.
    """

    time: np.ndarray  # [T] i64, ns since 1970 UTC, bar open
    open: np.ndarray  # [T] f64, points
    high: np.ndarray  # [T] f64, points
    low: np.ndarray  # [T] f64, points
    close: np.ndarray  # [T] f64, points
    volume: np.ndarray  # [T] f64, contracts
    session: np.ndarray  # [T] i64, trade date as days since 1970 (a session opens 18:00 New York)
    hole: np.ndarray  # [T] bool, bars that should exist are missing between t-1 and t
    roll: np.ndarray  # [T] bool, the contract changed between t-1 and t: that gap is nobody's P&L
    minutes: int  # length of a bar
    tick: float = 0.25  # points

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: slice) -> Bars:
        """Return the bars of a slice."""
        columns = [f.name for f in fields(self) if f.name not in ("minutes", "tick")]
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})
