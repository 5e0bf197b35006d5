"""Metrics against series worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from gm_jax.report.backtest import Ledger
from gm_jax.report.metrics import (
    max_drawdown,
    session_closes,
    session_returns,
    sharpe_ratio,
    summarise,
)


START = 10_000_000
COLUMNS = ("gross", "commission", "spread", "impact", "roll_cost")


def ledger(equity, final=None, session=None, position=0, closed=None, **items) -> Ledger:
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
        traded=np.abs(np.diff(position, append=0)),
        closed=np.zeros(count, dtype=int) if closed is None else np.asarray(closed),
        start_equity=START,
        final_equity=final,
    )


def test_session_return_is_the_change_over_the_sessions_opening_equity():
    # closes within a session do not count; the last session ends with the costs of closing
    equity = [START, 10_500_000, 10_200_000, 9_000_000, 9_690_000, 9_690_000, 9_700_000]
    made = ledger(equity, final=9_786_900, session=[3, 3, 3, 4, 4, 7, 7])
    closes = session_closes(made.start_equity, made.curve, made.session)
    np.testing.assert_array_equal(closes, [START, 10_200_000, 9_690_000, 9_786_900])
    np.testing.assert_allclose(session_returns(closes), [0.02, -0.05, 0.01], atol=1e-15)


def test_sharpe_ratio_is_annualised_over_252_sessions():
    """+2 % and −1 % in turn: mean 0.5 %, sample deviation 1.5 % · √(20/19)."""
    returns = np.tile([0.02, -0.01], 10)
    by_hand = 15.874507866387544 / 3 * (19 / 20) ** 0.5
    assert by_hand == pytest.approx(5.157519, abs=1e-6)
    assert sharpe_ratio(returns) == pytest.approx(by_hand, rel=1e-12)
    assert sharpe_ratio(-returns) == pytest.approx(-by_hand, rel=1e-12)
    assert sharpe_ratio(10 * returns) == pytest.approx(by_hand, rel=1e-12)
    series = pd.Series(np.random.default_rng(0).standard_t(4, 300))
    assert sharpe_ratio(series.to_numpy()) == pytest.approx(
        np.sqrt(252) * series.mean() / series.std(), rel=1e-12
    )

    # through a ledger: the same, to the rounding of cents
    equity = START * np.append(1, np.cumprod(1 + returns))
    made = ledger(np.rint(equity[1:]).astype(int))
    assert summarise(made, 6)["sharpe_ratio"] == pytest.approx(by_hand, rel=1e-5)


def test_sharpe_ratio_is_none_with_a_reason_where_it_means_nothing():
    rising = START + 1_000 * np.arange(1, 30) ** 2
    short, enough = (summarise(ledger(rising[:n]), 6) for n in (19, 20))
    assert (short["sharpe_ratio"], short["sessions"]) == (None, 19)
    assert short["sharpe_reason"] == "19 full sessions, at least 20 needed"
    assert enough["sharpe_ratio"] > 0
    assert enough["sharpe_reason"] is None
    still = summarise(ledger(np.full(30, START)), 6)
    assert (still["sharpe_ratio"], still["sharpe_reason"]) == (None, "session returns do not vary")
    assert (still["max_drawdown"], still["total_return"], still["net_pnl"]) == (0, 0, 0)


def test_equal_returns_have_no_deviation_though_rounding_gives_one():
    equity = 100 * np.cumprod(np.full(31, 1.001))
    returns = equity[1:] / equity[:-1] - 1
    assert 0 < returns.std() < 1e-15
    assert sharpe_ratio(returns) is None


@pytest.mark.parametrize(
    ("equity", "wanted"),
    [
        ([100, 120, 90, 130, 117], 0.25),
        ([100, 101, 102], 0.0),
        ([100, 50, 200, 101], 0.5),
        ([100, -20], 1.2),
    ],
)
def test_max_drawdown_is_a_share_of_the_peak(equity, wanted):
    assert max_drawdown(np.array(equity, dtype=float)) == pytest.approx(wanted, abs=1e-15)


def test_drawdown_counts_the_costs_of_closing():
    made = ledger([START, 12_000_000], final=9_000_000)
    assert summarise(made, 6)["max_drawdown"] == 0.25


def test_exposure_is_the_mean_absolute_share_of_the_maximum():
    made = ledger([START] * 4, position=[0, 3, -3, 6])
    assert summarise(made, 6)["exposure"] == 0.5
    assert summarise(made, 12)["exposure"] == 0.25
    assert summarise(made, 6)["turnover"] == 3 + 6 + 9 + 6


def test_summary_in_dollars():
    costs = {"commission": [75, 150], "spread": [25, 50], "impact": [13, 36], "roll_cost": [0, 236]}
    made = ledger([START, START - 5_000], final=START - 12_345, **costs).check()
    report = summarise(made, 6)
    assert report["net_pnl"] == -123.45
    assert report["final_portfolio_value"] == 99_876.55
    assert report["total_return"] == pytest.approx(-0.0012345, rel=1e-12)
    assert [report[k] for k in ("commission", "spread_cost", "impact_cost", "roll_cost")] == [
        2.25,
        0.75,
        0.49,
        2.36,
    ]
    # what is reported adds up: the roll's cost is part of the others
    paid = report["commission"] + report["spread_cost"] + report["impact_cost"]
    assert report["gross_pnl"] - paid == pytest.approx(report["net_pnl"], abs=1e-9)
    assert (report["bars"], report["sessions"]) == (2, 2)


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "drawdown limit"), (2, "ruin"), (3, "margin call")]
)
def test_an_account_that_ended_says_why_and_when(code, reason):
    report = summarise(ledger([START] * 3, closed=[0, code, code]), 6)
    assert report["closed_early"]["reason"] == reason
    assert report["closed_early"]["time"].startswith("1970-01-01T00:05:00")


@pytest.mark.parametrize("equity", [[START], [START] * 40, [START, -5], START + np.arange(40)])
def test_missing_numbers_are_null_never_nan(equity):
    json.dumps(summarise(ledger(equity), 6), allow_nan=False)
