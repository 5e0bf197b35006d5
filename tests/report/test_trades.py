"""Trades against cases by hand and a slow bookkeeper."""

import numpy as np
import pytest

from gm_jax.report.trades import profit_factor, trade_pnl, win_rate
from tests.report.ledgers import START, by_rows, ledger


@pytest.mark.parametrize(
    ("position", "traded", "net", "wanted"),
    [
        # bought in row 0, sold in row 2; the costs of both orders are the trade's
        ([0, 1, 1, 0], None, [-50, 300, -70, 0], [180]),
        # built up and reduced on the way: one trade
        ([0, 1, 3, 2, 0], None, [1, 2, 4, 8, 0], [15]),
        # two trades with a rest between, and one right after the other
        ([0, 2, 0, 0, -2, 0], None, [5, 6, 0, 7, -20, 0], [11, -13]),
        ([0, 1, 0, 1, 0], None, [1, 2, -4, -8, 0], [3, -12]),
        # turned from long to short at one open: never flat, one trade
        ([0, 2, -2, 0], None, [10, -30, 5, 0], [-15]),
        # opened and stopped inside one bar
        ([0, 0, 0], [4, 0, 0], [-400, 0, 0], [-400]),
        # the same twice, then a trade that lasts
        ([0, 0, 0, 1, 0], [2, 2, 1, 1, 0], [-5, -6, 1, 2, 0], [-5, -6, 3]),
        # stopped in a later bar, or turned round and stopped inside one bar: still one trade
        ([0, 2, 0], [2, 2, 0], [100, -250, 0], [-150]),
        ([0, 2, 0], [2, 6, 0], [100, -250, 0], [-150]),
        # still open at the end: closed at the last close, with costs
        ([0, 1, 1], [1, 0, 1], [20, 30, -7], [43]),
        # a rest before the first
        ([0, 0, 3, 0], None, [0, 9, 9, 0], [18]),
        ([0, 0], None, [0, 0], []),
    ],
)
def test_trades_by_hand(position, traded, net, wanted):
    assert trade_pnl(by_rows(net, position, traded)).tolist() == wanted


def bookkeeper(made):
    """Go through the rows one by one and keep the open trade's money."""
    done, open_trade, begun = [], 0, False
    after = np.append(made.position[1:], 0)
    for i in range(len(made.position)):
        begun |= bool(made.traded[i])
        if begun:
            open_trade += int(made.gross[i] - made.cost[i])
        if begun and after[i] == 0:
            done.append(open_trade)
            open_trade, begun = 0, False
    return done


@pytest.mark.parametrize("seed", range(20))
def test_random_accounts_against_a_slow_bookkeeper(seed):
    rng = np.random.default_rng(seed)
    position = np.append(0, rng.integers(-2, 3, 199) * rng.integers(0, 2, 199))
    after = np.append(position[1:], 0)
    stopped = (after == 0) & (rng.random(200) < 0.2)
    stopped[-1] = False
    traded = np.abs(after - position) + 2 * stopped  # in and out again inside the bar
    net = rng.integers(-500, 500, 200) * ((position != 0) | (traded != 0))
    made = by_rows(net, position, traded)
    found = trade_pnl(made)
    assert found.tolist() == bookkeeper(made)
    assert len(found) > 20
    # every cent belongs to exactly one trade
    assert START + found.sum() == made.final_equity


def test_win_rate_and_profit_factor():
    pnl = np.array([300, -100, 0, 500, -300])
    assert win_rate(pnl) == 2 / 5  # a trade that comes to nothing did not win
    assert profit_factor(pnl) == 2.0
    assert (win_rate(-pnl[:1]), profit_factor(-pnl[:1])) == (0.0, 0.0)
    none = trade_pnl(ledger([START] * 3))
    assert (len(none), win_rate(none), profit_factor(none)) == (0, None, None)
    assert (win_rate(pnl[:1]), profit_factor(pnl[:1])) == (1.0, None)
