"""Ledgers made by hand."""

import numpy as np

from gm_jax.report.backtest import Ledger


START = 10_000_000
COLUMNS = ("gross", "commission", "spread", "impact", "roll_cost")


def ledger(
    equity, final=None, session=None, position=0, closed=None, traded=None, **items
) -> Ledger:
    """Build a ledger from its equity at each close; one bar a session unless told."""
    equity = np.asarray(equity, dtype=np.int64)
    count = len(equity)
    zero = np.zeros(count, dtype=np.int64)
    final = int(equity[-1] if final is None else final)
    change = np.diff(np.append(equity, final))
    given = dict.fromkeys(COLUMNS, zero) | {k: np.asarray(v) for k, v in items.items()}
    given["gross"] = change + given["commission"] + given["spread"] + given["impact"]
    position = np.broadcast_to(np.asarray(position), count)
    return Ledger(
        time=np.arange(count) * 300 * 10**9,
        session=np.arange(count) if session is None else np.asarray(session),
        actions=np.zeros((count, 3), dtype=np.int32),
        position=position,
        target=position,
        equity=equity,
        **given,
        traded=np.abs(np.diff(position, append=0)) if traded is None else np.asarray(traded),
        closed=np.zeros(count, dtype=int) if closed is None else np.asarray(closed),
        start_equity=START,
        final_equity=final,
    )


def of_returns(returns) -> Ledger:
    """Build a ledger whose sessions, of one bar each, have these returns, to a cent's rounding."""
    return ledger(np.rint(START * np.cumprod(1 + np.asarray(returns))).astype(np.int64))


def by_rows(net, position, traded=None, session=None) -> Ledger:
    """Build a ledger from what each row came to, cents, costs of 7 cents a contract among it."""
    net = np.asarray(net)
    equity = START + np.append(0, np.cumsum(net))
    made = np.abs(np.diff(position, append=0)) if traded is None else np.asarray(traded)
    return ledger(
        equity[:-1],
        final=equity[-1],
        session=session,
        position=position,
        traded=made,
        commission=7 * made,
    ).check()
