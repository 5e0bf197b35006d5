"""Breakdowns of one backtest: by windows, by market regime, by calendar year."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gm_jax.report.backtest import Ledger
from gm_jax.report.metrics import (
    MIN_SESSIONS,
    full_sessions,
    max_drawdown,
    session_closes,
    session_returns,
    sharpe_ratio,
)


def episodes(ledger: Ledger, length: int) -> list[float]:
    """Return the change of net equity over consecutive windows, bp of the start equity.

    An incomplete last window is left out; where none is complete, all bars are the one window.

    Args:
        ledger: of the backtest.
        length: bars a window.
    """
    windows = len(ledger.equity) // length
    marks = ledger.curve[: windows * length + 1 : length] if windows else ledger.curve[[0, -1]]
    return [float(change) * 1e4 / ledger.start_equity for change in np.diff(marks)]


def by_regime(
    ledger: Ledger, labels: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return what the account did while each regime was the label known at the close.

    `bars`, their `share`, `net_pnl` (USD), `contracts` (mean absolute position),
    `mean_bp` and `deviation_bp` (sample) of the change of net equity from a row's close to the
    next, bp of the equity at the row. What needs bars that a regime does not have is None.

    Args:
        ledger: of the backtest.
        labels: [n] int, index into names for each row.
        names: of the regimes.
    """
    change = np.diff(ledger.curve)
    solvent = ledger.equity > 0
    moved = np.where(solvent, change * 1e4 / np.where(solvent, ledger.equity, 1), 0)
    held = np.abs(ledger.position)
    found = {}
    for number, name in enumerate(names):
        rows = np.flatnonzero(labels == number)
        found[name] = {
            "bars": len(rows),
            "share": len(rows) / len(labels),
            "net_pnl": int(change[rows].sum()) / 100,
            "contracts": float(held[rows].mean()) if len(rows) else None,
            "mean_bp": float(moved[rows].mean()) if len(rows) else None,
            "deviation_bp": float(moved[rows].std(ddof=1)) if len(rows) > 1 else None,
        }
    return found


def by_year(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Return the figures of each calendar year of trade dates, by the year's name.

    `sessions`, `net_pnl` (USD), `total_return` on the equity that the year opens with,
    `sharpe_ratio`, and `max_drawdown` from peaks within the year. What needs equity that a year
    does not open with is None.

    Args:
        ledger: of the backtest.
    """
    closes = session_closes(ledger.start_equity, ledger.curve, ledger.session)
    returns = session_returns(closes)
    dates = np.unique(ledger.session)
    year_of_session, year_of_row = _year(dates), _year(ledger.session)
    found = {}
    for year in np.unique(year_of_session):
        own = np.flatnonzero(year_of_session == year)
        rows = year_of_row == year
        opening, closing = closes[own[0]], closes[own[-1] + 1]
        curve = np.concatenate([[opening], ledger.equity[rows], [closing]])
        enough = full_sessions(ledger.session[rows]) >= MIN_SESSIONS
        found[str(year)] = {
            "sessions": len(own),
            "net_pnl": float(closing - opening) / 100,
            "total_return": float(closing / opening - 1) if opening > 0 else None,
            "sharpe_ratio": sharpe_ratio(returns[own]) if enough else None,
            "max_drawdown": max_drawdown(curve) if opening > 0 else None,
        }
    return found


def _year(session: np.ndarray) -> np.ndarray:
    """Return the calendar year of trade dates given as days since 1970, [n] i64."""
    return session.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64) + 1970
