"""Breakdowns add up to the whole, and say what a slow count says."""

import json

import numpy as np
import pandas as pd
import pytest

from gm_jax.report.breakdown import by_regime, by_year, episodes
from gm_jax.report.metrics import summarise
from tests.report.ledgers import START, by_rows, ledger


NAMES = ("CALM", "WILD", "NEVER")


def random_ledger(seed=0, bars=1_000, session=None):
    rng = np.random.default_rng(seed)
    net = rng.integers(-30_000, 31_000, bars)
    return by_rows(net, np.append(0, rng.integers(-3, 4, bars - 1)), session=session)


# episodes


@pytest.mark.parametrize("length", [1, 10, 125, 500, 1_000])
def test_episodes_add_up_to_the_whole(length):
    made = random_ledger()
    found = episodes(made, length)
    assert len(found) == 1_000 // length
    assert sum(found) == pytest.approx((made.final_equity - START) / START * 1e4, rel=1e-12)


def test_episodes_are_changes_of_equity_from_close_to_close():
    made = by_rows([10_000, -3_000, 500, 0, 2_000, -700, 999_999], [0] * 7)
    assert episodes(made, 3) == [7.5, 1.3]  # the last bar is left out
    assert episodes(made, 7) == episodes(made, 8) == pytest.approx([1_008.799], rel=1e-12)


def test_last_episode_pays_for_closing():
    assert episodes(ledger([START, START], final=START - 5_000), 2) == [-5.0]
    assert episodes(ledger([START], final=START - 5_000), 1_000) == [-5.0]


# regimes


def test_regimes_by_hand():
    # equity at the rows: 10.0, 10.1, 9.9, 9.9 million cents
    made = by_rows([100_000, -200_000, 0, 30_000], [0, 2, -2, 4])
    found = by_regime(made, np.array([0, 1, 1, 0]), NAMES)
    calm, wild = np.array([100.0, 30_000 / 9.9e6 * 1e4]), np.array([-200_000 / 10.1e6 * 1e4, 0])
    for name, net, held, moved in (("CALM", 1_300, 2, calm), ("WILD", -2_000, 2, wild)):
        assert found[name] == pytest.approx(
            {
                "bars": 2,
                "share": 0.5,
                "net_pnl": net,
                "contracts": held,
                "mean_bp": moved.mean(),
                "deviation_bp": abs(moved[0] - moved[1]) / 2**0.5,
            },
            rel=1e-12,
        )
    never = {"bars": 0, "share": 0, "net_pnl": 0}
    assert found["NEVER"] == never | dict.fromkeys(("contracts", "mean_bp", "deviation_bp"))


def test_regimes_add_up_to_the_whole():
    made, rng = random_ledger(), np.random.default_rng(1)
    labels = rng.integers(0, 2, 1_000)
    found = by_regime(made, labels, NAMES)
    whole = summarise(made, 1)
    assert list(found) == list(NAMES)
    assert sum(r["bars"] for r in found.values()) == whole["bars"]
    assert sum(r["share"] for r in found.values()) == pytest.approx(1, rel=1e-12)
    assert sum(r["net_pnl"] for r in found.values()) == pytest.approx(whole["net_pnl"], abs=1e-6)
    held = sum(r["share"] * (r["contracts"] or 0) for r in found.values())
    assert held == pytest.approx(whole["exposure"], rel=1e-12)

    moved = pd.Series(made.curve).pct_change().dropna().to_numpy() * 1e4
    frame = pd.DataFrame({"moved": moved, "regime": [NAMES[i] for i in labels]})
    for name, rows in frame.groupby("regime"):
        assert found[name]["mean_bp"] == pytest.approx(rows.moved.mean(), rel=1e-9)
        assert found[name]["deviation_bp"] == pytest.approx(rows.moved.std(), rel=1e-9)


def test_regimes_are_null_never_nan():
    broke = ledger([START, 0, -5, -5], final=-9)
    found = by_regime(broke, np.array([0, 1, 1, 1]), NAMES)
    json.dumps(found, allow_nan=False)
    assert found["WILD"]["mean_bp"] == 0  # an account without equity has no return
    assert found["CALM"]["deviation_bp"] is None
    total = sum(r["net_pnl"] for r in found.values())
    assert total == (-9 - START) / 100


# years


def dates(first, count):
    """Return count business days as days since 1970."""
    days = pd.bdate_range(first, periods=count).to_numpy()
    return days.astype("datetime64[D]").astype(np.int64)


def test_years_by_hand():
    session = np.repeat(dates("2019-12-30", 4), 2)  # two sessions of 2019, two of 2020
    assert pd.Timestamp(int(session[-1]), unit="D") == pd.Timestamp("2020-01-02")
    million = 1_000_000
    equity = np.array([10, 12, 9, 11, 8, 10, 12, 13]) * million
    found = by_year(ledger(equity, final=12 * million, session=session))
    assert list(found) == ["2019", "2020"]
    assert found["2019"] == pytest.approx(
        {
            "sessions": 2,
            "net_pnl": 10_000,
            "total_return": 0.1,
            "sharpe_ratio": None,
            "max_drawdown": 0.25,  # 12 to 9
        }
    )
    # opens at 11, and at its end pays for closing
    assert found["2020"]["net_pnl"] == 10_000
    assert found["2020"]["total_return"] == pytest.approx(1 / 11)
    assert found["2020"]["max_drawdown"] == pytest.approx(3 / 11)


def test_years_add_up_to_the_whole():
    session = np.repeat(dates("2018-12-03", 540), 2)
    made = random_ledger(bars=1_080, session=session)
    found, whole = by_year(made), summarise(made, 1)
    assert [(year, r["sessions"]) for year, r in found.items()] == [
        ("2018", 21),
        ("2019", 261),
        ("2020", 258),
    ]
    assert sum(r["net_pnl"] for r in found.values()) == pytest.approx(whole["net_pnl"], abs=1e-6)
    growth = np.prod([1 + r["total_return"] for r in found.values()])
    assert growth - 1 == pytest.approx(whole["total_return"], rel=1e-9)
    assert max(r["max_drawdown"] for r in found.values()) <= whole["max_drawdown"]

    closes = pd.Series(np.append(made.curve[1:-2:2], made.curve[-1]))
    returns = closes.pct_change().fillna(closes[0] / START - 1)
    year = pd.to_datetime(np.unique(session), unit="D").year
    for name, own in returns.groupby(year):
        wanted = np.sqrt(252) * own.mean() / own.std()
        assert found[str(name)]["sharpe_ratio"] == pytest.approx(wanted, rel=1e-9)


def test_one_year_is_the_whole():
    made = random_ledger(bars=200, session=np.repeat(dates("2021-02-01", 50), 4))
    (year,) = by_year(made).values()
    whole = summarise(made, 1)
    assert year == {key: pytest.approx(whole[key], rel=1e-12) for key in year}


def test_year_pays_for_closing():
    found = by_year(ledger([START] * 3, final=START - 100_000, session=dates("2020-01-02", 3)))
    assert found["2020"]["max_drawdown"] == pytest.approx(0.01)


@pytest.mark.parametrize(("thin", "missing"), [(1, True), (0, False)])
def test_year_needs_20_full_sessions(thin, missing):
    bars = [10] * (20 - thin) + [1] * thin
    session = np.repeat(dates("2020-01-02", 20), bars)
    (year,) = by_year(random_ledger(bars=len(session), session=session)).values()
    assert year["sessions"] == 20
    assert (year["sharpe_ratio"] is None) is missing


def test_year_that_opens_without_equity():
    session = dates("2019-12-30", 4)
    found = by_year(ledger([START, -5, -5, -7], session=session))
    json.dumps(found, allow_nan=False)
    assert found["2019"]["total_return"] == -5 / START - 1
    assert [found["2020"][k] for k in ("total_return", "max_drawdown")] == [None, None]
    assert found["2020"]["net_pnl"] == -0.02
