"""Metrics of a ledger: one implementation, float64, null instead of NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from gm_jax.market.data_report import iso
from gm_jax.report import bootstrap, trades
from gm_jax.report.backtest import Ledger
from gm_jax.report.significance import STILL, probabilistic_sharpe, session_sharpes


SESSIONS_A_YEAR = 252
MIN_SESSIONS = 20  # for a ratio
MIN_TAIL_SESSIONS = 60  # for what happens once in twenty
TAIL = 0.05


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
    return SESSIONS_A_YEAR**0.5 * session_sharpes(returns)


def sharpe_interval(returns: np.ndarray) -> list[float] | None:
    """Return the 95 % interval [low, high] of the Sharpe ratio, None where that is None.

    Args:
        returns: [sessions].
    """
    if sharpe_ratio(returns) is None:
        return None
    bounds = bootstrap.interval(lambda rows: sharpe_ratios(returns[rows]), len(returns))
    return None if bounds is None else list(bounds)


def sortino_ratio(returns: np.ndarray) -> float | None:
    """Return √252 · mean / √mean(min(r, 0)²) of session returns.

    None below 20 sessions or without downside.

    Args:
        returns: [sessions].
    """
    downside = float(np.sqrt((np.minimum(returns, 0) ** 2).mean()))
    if len(returns) < MIN_SESSIONS or not downside > STILL:
        return None
    return float(SESSIONS_A_YEAR**0.5 * returns.mean() / downside)


def calmar_ratio(closes: np.ndarray, drawdown: float) -> float | None:
    """Return the compound annual growth over the largest drawdown.

    ((final / start)^(252 / sessions) − 1) / drawdown; a growth of −1 where nothing is left. None
    below 20 sessions or without drawdown.

    Args:
        closes: [sessions + 1], see `session_closes`.
        drawdown: share of the peak, see `max_drawdown`.
    """
    sessions = len(closes) - 1
    if sessions < MIN_SESSIONS or not drawdown > 0:
        return None
    left = max(float(closes[-1] / closes[0]), 0.0)
    return (left ** (SESSIONS_A_YEAR / sessions) - 1) / drawdown


def tail_losses(returns: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return what one session in twenty loses at least, and on average: VaR and CVaR, historical.

    −(5th percentile) and −(mean of the worst ⌊(n − 1) · 0.05⌋ + 1 returns), shares of equity,
    positive for a loss. None below 60 sessions.

    Args:
        returns: [n], of sessions.
    """
    count = len(returns)
    if count < MIN_TAIL_SESSIONS:
        return None, None
    worst = np.sort(returns)[: int((count - 1) * TAIL) + 1]
    return 0.0 - float(np.quantile(returns, TAIL)), 0.0 - float(worst.mean())  # never −0


def max_drawdown(equity: np.ndarray) -> float:
    """Return the largest fall from a peak as a share of the peak, at bar closes."""
    return float((1 - equity / np.maximum.accumulate(equity)).max())


def summarise(ledger: Ledger, max_contracts: int, *, interval: bool = False) -> dict[str, Any]:
    """Return what one backtest came to; money in USD, ratios as fractions.

    Args:
        ledger: of the backtest.
        max_contracts: the exposure that counts as 1.
        interval: whether to add `sharpe_ci95`, which costs 2,000 resamples.
    """
    closes = session_closes(ledger.start_equity, ledger.curve, ledger.session)
    full = full_sessions(ledger.session)
    drawdown = max_drawdown(np.append(ledger.start_equity, ledger.curve).astype(np.float64))
    exposure = np.abs(ledger.position).mean() / max_contracts
    trade_pnl = trades.trade_pnl(ledger)
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
        **_ratios(closes, drawdown, full, interval),
        "max_drawdown": drawdown,
        "total_return": ledger.final_equity / ledger.start_equity - 1,
        "final_portfolio_value": ledger.final_equity / 100,
        **{k: float(v.sum()) / 100 for k, v in usd.items()},
        "exposure": float(exposure),
        "turnover": float(ledger.traded.sum()),
        "trades": len(trade_pnl),
        "win_rate_trades": trades.win_rate(trade_pnl),
        "profit_factor": trades.profit_factor(trade_pnl),
        "bars": len(ledger.equity),
        "sessions": len(closes) - 1,
        "closed_early": None
        if closed is None
        else {"reason": closed[0], "time": iso(int(ledger.time[closed[1]]))},
    }


def _ratios(closes: np.ndarray, drawdown: float, full: int, interval: bool) -> dict[str, Any]:
    """Return what session returns say; the ratios are None below 20 full sessions."""
    returns = session_returns(closes)
    enough = full >= MIN_SESSIONS
    sharpe = sharpe_ratio(returns) if enough else None
    var, cvar = tail_losses(returns)
    found: dict[str, Any] = {
        "sharpe_ratio": sharpe,
        "sharpe_reason": None if sharpe is not None else _why_not(full),
        "probabilistic_sharpe": probabilistic_sharpe(returns) if enough else None,
        "sortino_ratio": sortino_ratio(returns) if enough else None,
        "calmar_ratio": calmar_ratio(closes, drawdown) if enough else None,
        "var_95": var,
        "cvar_95": cvar,
    }
    if interval:
        found["sharpe_ci95"] = sharpe_interval(returns) if enough else None
    return found


def _why_not(full: int) -> str:
    if full < MIN_SESSIONS:
        return f"{full} full sessions, at least {MIN_SESSIONS} needed"
    return "session returns do not vary"
