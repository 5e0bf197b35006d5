"""Metrics against series worked out by hand and against the library empyrical."""

import json
import math

import empyrical
import numpy as np
import pandas as pd
import pytest

from gm_jax.report.bootstrap import stationary_bootstrap
from gm_jax.report.metrics import (
    calmar_ratio,
    max_drawdown,
    session_closes,
    session_returns,
    sharpe_interval,
    sharpe_ratio,
    sortino_ratio,
    summarise,
    tail_losses,
)
from tests.report.ledgers import START, by_rows, ledger, of_returns


RATIOS = ("sharpe_ratio", "sharpe_ci95", "probabilistic_sharpe", "sortino_ratio", "calmar_ratio")


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


SHAPES = {
    "rising": lambda rng, n: rng.normal(0.002, 0.01, n),
    "falling": lambda rng, n: rng.normal(-0.002, 0.01, n),
    "heavy tails": lambda rng, n: np.clip(0.01 * rng.standard_t(3, n), -0.2, 0.2),
    "seldom moves": lambda rng, n: rng.normal(0.001, 0.01, n) * (rng.random(n) < 0.3),
    "tiny": lambda rng, n: rng.normal(1e-6, 1e-5, n),
}


@pytest.mark.parametrize("sessions", [20, 59, 60, 61, 250, 1_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_ratio_is_the_librarys(shape, sessions):
    for seed in range(5):
        made = of_returns(SHAPES[shape](np.random.default_rng(seed), sessions))
        # returns by another road than ours: pandas over the account in whole cents
        account = pd.Series([made.start_equity, *made.curve[:-1]])
        theirs = account.pct_change().dropna()
        ours = summarise(made, 6)
        wanted = {
            "sharpe_ratio": empyrical.sharpe_ratio(theirs),
            "sortino_ratio": empyrical.sortino_ratio(theirs),
            "calmar_ratio": empyrical.calmar_ratio(theirs),
            "max_drawdown": -empyrical.max_drawdown(theirs),
            "total_return": empyrical.cum_returns_final(theirs),
            "var_95": -empyrical.value_at_risk(theirs),
            "cvar_95": -empyrical.conditional_value_at_risk(theirs),
        }
        if sessions < 60:
            assert (ours["var_95"], ours["cvar_95"]) == (None, None)
            del wanted["var_95"], wanted["cvar_95"]
        assert {k: ours[k] for k in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-13)


def test_ratios_of_sessions_with_many_bars_are_those_of_their_closes():
    """The library sees sessions only; the drawdown is the one at bar closes, which is deeper."""
    rng = np.random.default_rng(3)
    equity = START + np.cumsum(rng.integers(-40_000, 41_000, 46 * 100))
    made = ledger(equity, session=np.repeat(np.arange(100), 46))
    theirs = pd.Series([START, *equity[45::46]]).pct_change().dropna()
    ours = summarise(made, 6)
    assert ours["sessions"] == 100
    for name in ("sharpe_ratio", "sortino_ratio"):
        assert ours[name] == pytest.approx(getattr(empyrical, name)(theirs), rel=1e-9)
    bars = pd.Series([START, *equity]).pct_change().dropna()
    deepest = -empyrical.max_drawdown(bars)
    assert deepest > -empyrical.max_drawdown(theirs)
    assert ours["max_drawdown"] == pytest.approx(deepest, rel=1e-9)
    growth = empyrical.annual_return(theirs)
    assert ours["calmar_ratio"] == pytest.approx(growth / deepest, rel=1e-9)


def test_sortino_ratio_by_hand():
    """+2 % and −1 % in turn: mean 0.5 %, downside 1 % · √½."""
    by_hand = 15.874507866387544 * 0.005 / (0.01 * 0.5**0.5)
    assert sortino_ratio(np.tile([0.02, -0.01], 10)) == pytest.approx(by_hand, rel=1e-12)
    assert sortino_ratio(np.tile([0.02, -0.01], 9)) is None
    assert sortino_ratio(np.tile([0.02, 0.0], 10)) is None


def test_calmar_ratio_by_hand():
    """Doubled in a year is a growth of 1; in half a year, of 3; halved in two, of √½ − 1."""
    for sessions, final, growth in ((252, 2, 1), (126, 2, 3), (504, 0.5, 0.5**0.5 - 1)):
        closes = np.append(np.ones(sessions), final) * START
        assert calmar_ratio(closes, 0.25) == pytest.approx(4 * growth, rel=1e-12)
    assert calmar_ratio(np.full(253, START), 0.0) is None
    assert calmar_ratio(np.full(20, START), 0.25) is None


@pytest.mark.parametrize("final", [0, -1, -START])
def test_nothing_left_is_a_growth_of_minus_one(final):
    report = summarise(ledger([START] * 30, final=final), 6)
    assert report["calmar_ratio"] == pytest.approx(-1 / report["max_drawdown"], rel=1e-12)
    assert report["max_drawdown"] == 1 - final / START


def test_tail_losses_by_hand():
    """−50 % to +50 % in steps of 1 %: the fifth of 101 from below is −45 %."""
    returns = np.random.default_rng(0).permutation(np.arange(-50, 51)) / 100
    assert tail_losses(returns) == pytest.approx((0.45, 0.475), rel=1e-12)
    assert tail_losses(returns[:59]) == (None, None)
    assert None not in tail_losses(returns[:60])
    gains = tail_losses(np.full(60, 0.01))
    assert gains == pytest.approx((-0.01, -0.01), rel=1e-12)  # even the worst session gained
    assert [str(x) for x in tail_losses(np.zeros(60))] == ["0.0", "0.0"]


def test_interval_is_that_of_the_resampled_sharpe_ratios():
    returns = np.random.default_rng(1).normal(0.001, 0.01, 120)
    report = summarise(of_returns(returns), 6, interval=True)
    by_hand = [
        np.sqrt(252) * returns[rows].mean() / returns[rows].std(ddof=1)
        for rows in stationary_bootstrap(120)
    ]
    wanted = np.quantile(by_hand, [0.025, 0.975])
    assert report["sharpe_ci95"] == pytest.approx(list(wanted), rel=1e-4)  # cents
    assert sharpe_interval(returns) == pytest.approx(list(wanted), rel=1e-9)
    low, high = report["sharpe_ci95"]
    assert low < report["sharpe_ratio"] < high
    assert "sharpe_ci95" not in summarise(of_returns(returns), 6)


def test_interval_is_as_wide_as_the_standard_error_of_the_sharpe_ratio():
    low, high = sharpe_interval(np.random.default_rng(0).normal(0.001, 0.01, 1_000))
    assert (high - low) / (2 * 1.96) == pytest.approx((252 / 1_000) ** 0.5, rel=0.2)


def test_resample_at_rest_counts_as_zero():
    """One session of 20 moves: a third of the resamples lack it and have no deviation."""
    report = summarise(of_returns([0] * 19 + [0.01]), 6, interval=True)
    low, high = report["sharpe_ci95"]
    assert low == 0
    assert high > report["sharpe_ratio"] > 0


@pytest.mark.parametrize(
    ("session", "missing"),
    [
        (np.arange(19), True),
        (np.arange(20), False),
        (np.repeat(np.arange(21), [10] * 19 + [1, 1]), True),  # 19 full ones and two thin
        (np.repeat(np.arange(21), [10] * 20 + [1]), False),
    ],
)
def test_ratios_need_20_full_sessions(session, missing):
    moves = np.random.default_rng(0).integers(-100_000, 100_000, len(session))
    report = summarise(ledger(START + np.cumsum(moves), session=session), 6, interval=True)
    assert {report[k] is None for k in RATIOS} == {missing}


def test_probabilistic_sharpe_is_of_sessions():
    returns = np.random.default_rng(0).normal(0.001, 0.01, 100)
    report = summarise(of_returns(returns), 6)
    per_session = report["sharpe_ratio"] / 252**0.5
    # for normal returns √(n − 1) · SR is about the score
    assert report["probabilistic_sharpe"] == pytest.approx(
        0.5 * (1 + math.erf(per_session * 99**0.5 / 2**0.5)), abs=0.01
    )


def test_trades_in_the_summary():
    made = by_rows([-100, 400, -50, -30, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 2, 2, 0, 0])
    report = summarise(made, 6)
    assert report["trades"] == 3
    assert report["win_rate_trades"] == pytest.approx(1 / 3)
    assert report["profit_factor"] == 300 / 80
    still = summarise(ledger([START] * 3), 6)
    assert [still[k] for k in ("trades", "win_rate_trades", "profit_factor")] == [0, None, None]


@pytest.mark.parametrize(
    "equity",
    [
        [START],
        [START] * 40,
        [START] * 100,
        [START, -5],
        [START] * 30 + [0] * 30,
        [START] * 30 + [-5] * 70,
        START + np.arange(40),
        START - np.arange(100),
        START * 1.001 ** np.arange(80),
        [START * 200] * 25,
    ],
)
def test_missing_numbers_are_null_never_nan(equity):
    json.dumps(summarise(ledger(equity), 6, interval=True), allow_nan=False)
