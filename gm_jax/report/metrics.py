"""Metrics of a ledger: one implementation, float64, null instead of NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from gm_jax.market.data_report import iso
from gm_jax.report.backtest import Ledger


SESSIONS_A_YEAR = 252
MIN_SESSIONS = 20
STILL = 1e-12  # a deviation that is rounding


def session_closes(start: int, curve: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Return equity before the first session and after each, [..., sessions + 1] f64, cents.

    Args:
        start: equity before the first bar, cents.
        curve: [..., n + 1], see `Ledger`.
        session: [n] i64, trade date of each bar.
    """
    last = np.flatnonzero(np.append(np.diff(session) != 0, True))
    last[-1] += 1  # after closing the position
    opening = np.full((*curve.shape[:-1], 1), start)
    return np.concatenate([opening, curve[..., last]], axis=-1).astype(np.float64)


def session_returns(closes: np.ndarray) -> np.ndarray:
    """Return each session's change of equity over its opening equity, [..., sessions] f64.

    Sessions that open without equity count as 0.

    Args:
        closes: [..., sessions + 1], see `session_closes`.
    """
    opening, solvent = closes[..., :-1], closes[..., :-1] > 0
    return np.where(solvent, closes[..., 1:] / np.where(solvent, opening, 1) - 1, 0)


def full_sessions(session: np.ndarray) -> int:
    """Return how many sessions have at least four fifths of the median one's bars.

    Args:
        session: [n] i64, trade date of each bar.
    """
    bars = np.unique(session, return_counts=True)[1]
    return int((bars >= 0.8 * np.median(bars)).sum())


def sharpe_ratio(returns: np.ndarray) -> float | None:
    """Return √252 · mean / sample deviation of session returns.

    None below 20 sessions or without deviation.
    """
    if len(returns) < MIN_SESSIONS or not returns.std() > STILL:
        return None
    return float(sharpe_ratios(returns))


def sharpe_ratios(returns: np.ndarray) -> np.ndarray:
    """Return the Sharpe ratio along the last axis, [...] f64; an account at rest counts as 0.

    Args:
        returns: [..., sessions], at least two.
    """
    deviation = returns.std(axis=-1, ddof=1)
    moves = deviation > STILL
    mean = np.where(moves, returns.mean(axis=-1), 0)
    return SESSIONS_A_YEAR**0.5 * mean / np.where(moves, deviation, 1)


def max_drawdown(equity: np.ndarray) -> float:
    """Return the largest fall from a peak as a share of the peak, at bar closes."""
    return float((1 - equity / np.maximum.accumulate(equity)).max())


def summarise(ledger: Ledger, max_contracts: int) -> dict[str, Any]:
    """Return what one backtest came to; money in USD, ratios as fractions."""
    returns = session_returns(session_closes(ledger.start_equity, ledger.curve, ledger.session))
    full = full_sessions(ledger.session)
    sharpe = sharpe_ratio(returns) if full >= MIN_SESSIONS else None
    equity = ledger.curve.astype(np.float64)
    exposure = np.abs(ledger.position).mean() / max_contracts
    closed = ledger.closed_by()
    usd = {
        "gross_pnl": ledger.gross,
        "commission": ledger.commission,
        "spread_cost": ledger.spread,
        "impact_cost": ledger.impact,
        "roll_cost": ledger.roll_cost,
        "net_pnl": ledger.gross - ledger.cost,
    }
    return {
        "sharpe_ratio": sharpe,
        "sharpe_reason": None if sharpe is not None else _why_not(full),
        "max_drawdown": max_drawdown(equity),
        "total_return": ledger.final_equity / ledger.start_equity - 1,
        "final_portfolio_value": ledger.final_equity / 100,
        **{k: float(v.sum()) / 100 for k, v in usd.items()},
        "exposure": float(exposure),
        "turnover": float(ledger.traded.sum()),
        "bars": len(ledger.equity),
        "sessions": len(returns),
        "closed_early": None
        if closed is None
        else {"reason": closed[0], "time": iso(int(ledger.time[closed[1]]))},
    }


def _why_not(full: int) -> str:
    if full < MIN_SESSIONS:
        return f"{full} full sessions, at least {MIN_SESSIONS} needed"
    return "session returns do not vary"
