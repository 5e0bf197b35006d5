"""Trades: from flat to flat, net of all costs."""

from __future__ import annotations

import numpy as np

from gm_jax.report.backtest import Ledger


def trade_pnl(ledger: Ledger) -> np.ndarray:
    """Return what each trade came to after its costs, [trades] i64, cents.

    A trade begins with the order of a flat account and ends when it is flat again: inside the same
    bar by a stop, or at the end of the span. A position turned round without a stop in between is
    one trade.

    Args:
        ledger: of an account that starts flat.
    """
    begins = (ledger.position == 0) & (ledger.traded != 0)
    # rows of a flat account at rest have no money in them, so each trade may run on to the next
    starts = np.flatnonzero(begins)
    net = ledger.gross - ledger.cost
    return np.add.reduceat(net, starts) if len(starts) else np.zeros(0, dtype=np.int64)


def win_rate(pnl: np.ndarray) -> float | None:
    """Return the share of trades that won, None without trades.

    Args:
        pnl: [trades], see `trade_pnl`.
    """
    return float((pnl > 0).mean()) if len(pnl) else None


def profit_factor(pnl: np.ndarray) -> float | None:
    """Return what the winning trades won over what the losing ones lost, None if none lost.

    Args:
        pnl: [trades], see `trade_pnl`.
    """
    lost = int(-pnl[pnl < 0].sum())
    return int(pnl[pnl > 0].sum()) / lost if lost else None
