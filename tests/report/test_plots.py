"""Pictures: they draw without warnings for any account, and show the right numbers."""

import subprocess
import sys

import numpy as np
import pytest

from gm_jax.market.regimes import REGIMES
from gm_jax.report import (
    figures,
    learning_plots,
    plots,
    return_plots,
    team_plots,
    trade_plots,
)
from gm_jax.report.backtest import Ledger
from gm_jax.report.metrics import max_drawdown


TEAMS = {
    "tactical": (
        ("tactical", "risk", "execution"),
        ("HOLD", "BUY_SMALL", "BUY_LARGE", "SELL_SMALL", "SELL_LARGE"),
    ),
    "strategic": (
        ("strategic", "portfolio_manager", "regime_detector"),
        (
            *("HOLD", "BUY_CONSERVATIVE", "BUY_AGGRESSIVE", "SELL_CONSERVATIVE"),
            *("SELL_AGGRESSIVE", "REDUCE_RISK", "INCREASE_RISK"),
        ),
    ),
}
BASELINES = (
    *("flat", "buy_and_hold", "buy_and_hold_same_exposure", "sma_crossover"),
    *("sma_crossover_same_exposure", "random", "random_same_turnover", "oracle"),
)
START = 10_000_000
BAR = 300 * 10**9
MOST = 6


def prices(count):
    return 18_000 + np.cumsum(np.random.default_rng(1).integers(-40, 41, count)) / 4


def account(position, actions=5, seed=0, roll=0, closed=None) -> Ledger:
    """Run positions over prices, with costs by contract and, halfway, those of a roll."""
    position = np.array(position)
    count, rng = len(position), np.random.default_rng(seed)
    position[0] = 0
    traded = np.abs(np.diff(position, append=0))
    gross = np.append(position[1:] * np.rint(2_000 * np.diff(prices(count))).astype(np.int64), 0)
    rolls = np.zeros(count, dtype=np.int64)
    rolls[count // 2] = roll
    commission, spread, impact = 75 * traded + rolls, 250 * traded, 13 * traded
    equity = START + np.append(0, np.cumsum(gross - commission - spread - impact))
    return Ledger(
        time=np.datetime64("2024-03-04T14:30", "ns").astype(np.int64) + BAR * np.arange(count),
        session=np.arange(count) // 78,
        actions=rng.integers(0, actions, (count, 3)).astype(np.int32),
        position=position.astype(np.int32),
        target=position.astype(np.int32),
        equity=equity[:-1],
        gross=gross,
        commission=commission,
        spread=spread,
        impact=impact,
        roll_cost=rolls,
        traded=traded,
        closed=np.zeros(count, dtype=int) if closed is None else closed,
        start_equity=START,
        final_equity=int(equity[-1]),
    ).check()


def trading(count=400, **how) -> Ledger:
    held = np.random.default_rng(2).integers(-MOST, MOST + 1, count // 10 + 1)
    return account(np.repeat(held, 10)[:count], **how)


def history(agents, count, scored=True):
    rng = np.random.default_rng(3)
    keys = "reward", "entropy", "approx_kl", "explained_variance", "actor_loss", "critic_loss"
    rows = []
    for i in range(count):
        row = {key: {agent: float(rng.random()) for agent in agents} for key in keys}
        row |= {"iteration": i + 1, "terms": {"equity": i - 3.0, "drawdown": -2.0, "stance": -1.0}}
        score = float(np.sin(i)) if scored and (i + 1) % 10 == 0 else None
        rows.append({**row, "cost_usd": 10.0, "selection_score": score})
    return rows


def worth(agents, interval=True):
    def one(x):
        some = {"net_pnl": 1_000.0 * x, "net_pnl_ci95": (900.0 * x, 1_300.0 * x)}
        rest = {"sharpe_ratio": x, "sharpe_ratio_ci95": (x - 1.5, x + 1)}
        return some | rest if interval else dict.fromkeys(some | rest) | {"net_pnl": 0.0}

    others = ("neutral", "hold", "random")
    return {a: {how: one(i - 1.0) for how in others} for i, a in enumerate(agents)}


def draw(figure):
    figure.set_dpi(50)
    figure.canvas.draw()
    return figure.axes


def sticks_out(figure):
    """Return the names of axes that reach over the edge of a picture that is drawn."""
    renderer, whole = figure.canvas.get_renderer(), figure.bbox.padded(1)
    boxes = {axis.get_title(loc="left"): axis.get_tightbbox(renderer) for axis in figure.axes}
    return [
        name
        for name, box in boxes.items()
        if not (whole.x0 <= box.x0 <= box.x1 <= whole.x1)
        or not (whole.y0 <= box.y0 <= box.y1 <= whole.y1)
    ]


def every_figure(team, ledger, most=MOST):
    agents, actions = TEAMS[team]
    labels = np.arange(len(ledger.time)) % 5  # never the sixth regime
    baselines = {name: account(np.ones(len(ledger.time)), seed=5) for name in BASELINES}
    null = {"real": 1.0, "null": [0.1, -0.4, 1.2], "p_value": 0.5}
    returns = np.diff(ledger.curve[::5]) / START
    yield plots.equity_and_drawdown({"team": ledger, **baselines}, "equity")
    yield trade_plots.price_and_position(ledger, prices(len(ledger.time)), "position", most)
    yield team_plots.action_use(ledger, agents, actions, labels, REGIMES, "actions")
    yield team_plots.coordination(ledger, agents, actions, worth(agents), "together")
    yield return_plots.return_distribution(returns, "returns", null)
    yield trade_plots.cost_breakdown(ledger, "costs")
    yield plots.walk_forward(ledger, ledger.time[::30], "walk-forward")


@pytest.mark.parametrize("team", TEAMS)
def test_figures_draw_with_titles_and_labels(team):
    ledger = trading(actions=len(TEAMS[team][1]), roll=2_500)
    learning = learning_plots.learning_curves(history(TEAMS[team][0], 60), "learning")
    for figure in (learning, *every_figure(team, ledger)):
        axes = draw(figure)
        assert figure.get_suptitle()
        assert all(axis.get_title(loc="left") for axis in axes)
        # panels of one row may share their vertical axis, stacked ones the horizontal
        assert all(axis.get_xlabel() or axis.get_ylabel() for axis in axes)
        assert axes[0].get_ylabel()
        assert axes[-1].get_xlabel()
        assert not sticks_out(figure)


@pytest.mark.parametrize("count", [1, 40])
def test_figures_draw_an_account_that_never_trades(count):
    for figure in every_figure("strategic", account(np.zeros(count), actions=1)):
        draw(figure)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_learning_curves_draw_a_run_that_has_only_begun(count):
    axes = draw(learning_plots.learning_curves(history(("a", "b", "c"), count), "begun"))
    assert axes[2].texts[0].get_text() == "nothing recorded yet"


def test_figures_draw_without_what_could_not_be_measured():
    agents, actions = TEAMS["tactical"]
    for contributions, said in (
        (None, "not measured"),
        ({}, "not measured"),
        (worth(agents, interval=False), "too few sessions"),
    ):
        figure = team_plots.coordination(trading(), agents, actions, contributions, "together")
        assert figure.axes[-1].texts[0].get_text() == said
    draw(figure)
    nothing = {"real": None, "null": [], "p_value": None}
    axes = draw(return_plots.return_distribution(np.zeros(0), "returns", nothing))
    assert [axis.texts[0].get_text() for axis in axes] == ["no sessions", "not tested"]
    draw(return_plots.return_distribution(np.zeros(3), "returns"))
    draw(plots.equity_and_drawdown({"team": trading()}, "alone"))
    draw(plots.walk_forward(trading(), [], "no fold"))


def test_learning_curves_hold_every_iteration_and_mark_the_best():
    rows = history(("a", "b"), 30)
    axes = learning_plots.learning_curves(rows, "learning").axes
    wanted = [row["reward"]["b"] for row in rows]
    np.testing.assert_array_equal(axes[0].lines[1].get_ydata(), wanted)
    np.testing.assert_array_equal(axes[0].lines[1].get_xdata(), np.arange(1, 31))
    scores, star = axes[2].lines[0], axes[2].lines[-1]
    np.testing.assert_array_equal(scores.get_xdata(), [10, 20, 30])
    assert star.get_ydata() == [scores.get_ydata().max()]
    # more iterations than that are averaged
    axes = learning_plots.learning_curves(rows * 2, "learning").axes
    mean = axes[0].lines[3].get_ydata()
    np.testing.assert_allclose(mean[:28], [np.mean(wanted[i : i + 3]) for i in range(28)])


def test_a_critics_first_guess_does_not_flatten_the_rest():
    rows = history(("a", "b"), 60)
    rows[0]["critic_loss"]["a"] = 500.0
    rows[0]["explained_variance"]["a"] = -80.0
    axes = learning_plots.learning_curves(rows, "learning").axes
    variance, loss = axes[5], axes[7]
    assert loss.get_ylim()[1] < 5
    assert "500" in loss.texts[0].get_text()
    assert variance.get_ylim()[0] > -1
    assert "−80" in variance.texts[0].get_text()


def test_drawdown_and_equity_are_those_of_the_ledger():
    team = trading(9_000)  # more rows than are drawn
    hold = account(np.full(9_000, 2))
    figure = plots.equity_and_drawdown({"buy_and_hold": hold, "team": team}, "equity")
    equity, drawdown = figure.axes
    lines = {line.get_label().split("  ")[0]: line for line in equity.lines}
    drawn = lines["team"].get_ydata()
    assert len(drawn) < 5_000
    assert (drawn[0], drawn[-1]) == (START / 100, team.final_equity / 100)
    assert (drawn.min(), drawn.max()) == (team.curve.min() / 100, team.curve.max() / 100)
    below = {line.get_label(): line.get_ydata() for line in drawdown.lines}
    worst = max_drawdown(team.curve.astype(float))
    assert below["team"].min() == pytest.approx(-worst, abs=1e-15)
    assert below["buy and hold"].min() == pytest.approx(-max_drawdown(hold.curve.astype(float)))
    assert f"{100 * worst:.1f} %" in drawdown.get_title(loc="left")
    names = [text.get_text().split("  ")[0] for text in equity.get_legend().get_texts()]
    best = "team" if team.final_equity > hold.final_equity else "buy and hold"
    assert names[0] == best


def test_an_account_closed_early_is_marked():
    closed = np.where(np.arange(100) >= 60, 1, 0)
    team = account(np.where(np.arange(100) < 60, 3, 0), closed=closed)
    equity = plots.equity_and_drawdown({"team": team}, "closed").axes[0]
    assert equity.texts[0].get_text().strip() == "closed: drawdown limit"
    assert equity.texts[0].xy[0] == figures.dates(team.time)[60]


def test_trades_are_marked_where_the_position_changes():
    position = np.repeat([0, 3, 1, -2, 0], 20)
    ledger, close = account(position), prices(100)
    price, held = trade_plots.price_and_position(ledger, close, "position", MOST).axes
    marks = {line.get_label(): line for line in price.lines}
    bought, sold = marks["bought"], marks["sold"]
    np.testing.assert_array_equal(bought.get_xdata(), figures.dates(ledger.time)[[20, 80]])
    np.testing.assert_array_equal(bought.get_ydata(), close[[20, 80]])
    np.testing.assert_array_equal(sold.get_xdata(), figures.dates(ledger.time)[[40, 60]])
    shade = price.collections[0].get_array().filled(0).ravel()
    np.testing.assert_array_equal(shade, [0, 3, 1, -2, 0])
    assert held.get_ylim() == pytest.approx((-1.08 * MOST, 1.08 * MOST))


def test_thousands_of_trades_are_shaded_not_marked():
    position = np.random.default_rng(0).integers(0, 3, 5_000)
    figure = trade_plots.price_and_position(account(position), prices(5_000), "position", MOST)
    price, held = figure.axes
    assert [line.get_label() for line in price.lines] == ["close"]
    shade = price.collections[0].get_array()
    assert shade.size <= 800
    assert shade.mean() == pytest.approx(position[1:].mean(), rel=0.02)
    assert held.get_ylim()[0] == 0
    assert "pale, range" in held.get_title(loc="left")


@pytest.mark.parametrize("team", TEAMS)
def test_shares_of_actions_are_those_of_the_ledger(team):
    agents, actions = TEAMS[team]
    ledger = trading(actions=len(actions))
    labels = np.arange(400) % 5
    figure = team_plots.action_use(ledger, agents, actions, labels, REGIMES, "actions")
    for agent, axis in enumerate(figure.axes):
        shares = np.ma.filled(axis.images[0].get_array(), np.nan)
        assert shares.shape == (1 + len(REGIMES), len(actions))
        np.testing.assert_allclose(shares[:-1].sum(1), 100)
        assert np.isnan(shares[-1]).all()
        chosen = ledger.actions[:, agent]
        assert shares[0, 2] == pytest.approx(100 * (chosen == 2).mean())
        assert shares[4, 1] == pytest.approx(100 * (chosen[labels == 3] == 1).mean())
        written = [text.get_text() for text in axis.texts[: len(actions)]]
        assert written == [f"{share:.0f}" for share in shares[0]]
        names = [label.get_text() for label in axis.get_xticklabels()]
        assert len(set(names)) == len(actions)
        assert max(map(len, names)) <= 12


@pytest.mark.parametrize("team", TEAMS)
def test_joint_actions_and_worth_are_those_given(team):
    agents, actions = TEAMS[team]
    ledger = trading(actions=len(actions))
    contributions = worth(agents)
    axes = team_plots.coordination(ledger, agents, actions, contributions, "together").axes
    for axis, (a, b) in zip(axes, ((0, 1), (0, 2), (1, 2)), strict=False):
        joint = np.asarray(axis.images[0].get_array())
        assert joint.sum() == pytest.approx(100)
        both = (ledger.actions[:, a] == 3) & (ledger.actions[:, b] == 1)
        assert joint[3, 1] == pytest.approx(100 * both.mean())
    money, sharpe = axes[3:]
    assert [bar.get_width() for bar in money.patches] == [-1_000, 0, 1_000]
    assert list(money.lines[0].get_xdata()) == [-900, -1_300]
    # pale where the interval holds 0
    assert [bar.get_alpha() < 0.5 for bar in money.patches] == [False, True, False]
    assert [bar.get_alpha() < 0.5 for bar in sharpe.patches] == [True, True, True]
    assert "+1,000" in money.get_yticklabels()[2].get_text()


def test_shared_information_in_bits():
    assert team_plots.shared_information(np.diag([0.5, 0.5])) == pytest.approx(1)
    assert team_plots.shared_information(np.diag(np.full(4, 0.25))) == pytest.approx(2)
    alone = np.outer([0.2, 0.8], [0.5, 0.5])
    assert team_plots.shared_information(alone) == pytest.approx(0, abs=1e-15)


def test_bridge_leads_from_gross_to_net():
    ledger = trading(roll=50_000)
    bridge, paid = trade_plots.cost_breakdown(ledger, "costs").axes
    gross, commission, spread, impact, net, rolls = bridge.patches
    steps = [bar.get_height() for bar in (gross, commission, spread, impact)]
    assert sum(steps) == pytest.approx(net.get_height(), abs=1e-6)
    assert net.get_height() == pytest.approx((ledger.final_equity - START) / 100)
    assert rolls.get_height() == pytest.approx(-500)
    # each step begins where the one before ends
    levels = [commission.get_y(), spread.get_y(), impact.get_y()]
    np.testing.assert_allclose(levels, np.cumsum(steps)[:3])
    top = max(area.get_paths()[0].vertices[:, 1].max() for area in paid.collections)
    assert top == pytest.approx(ledger.cost.sum() / 100)


def test_tail_losses_and_the_null_test_are_marked():
    returns = np.arange(-50, 50) / 1_000
    null = {"real": 2.0, "null": list(np.linspace(-1, 1, 19)), "p_value": 0.05}
    sessions, chance = return_plots.return_distribution(returns, "returns", null).axes
    lines = {line.get_label(): line.get_xdata()[0] for line in sessions.lines}
    var = next(x for name, x in lines.items() if name.startswith("VaR"))
    cvar = next(x for name, x in lines.items() if name.startswith("CVaR"))
    assert var == pytest.approx(np.quantile(returns, 0.05))
    assert cvar == pytest.approx(returns[:5].mean())
    assert sum(bar.get_height() for bar in sessions.patches) == len(returns)
    assert chance.lines[0].get_xdata()[0] == 2.0
    assert sum(bar.get_height() for bar in chance.patches) == 19
    assert "p = 0.05" in chance.get_title(loc="left")
    few = return_plots.return_distribution(returns[:59], "returns").axes[0]
    assert "fewer than 60 sessions" in few.get_legend().get_texts()[0].get_text()


def test_folds_are_told_apart_and_their_gains_add_up():
    ledger = trading()
    borders = ledger.time[[0, 100, 250]]
    axis = plots.walk_forward(ledger, borders, "walk-forward").axes[0]
    earned = [
        float(text.get_text().split("\n")[1].replace(",", "").replace("−", "-"))
        for text in axis.texts
    ]
    assert sum(earned) == pytest.approx((ledger.final_equity - START) / 100, abs=2)
    assert earned[1] == pytest.approx((ledger.equity[250] - ledger.equity[100]) / 100, abs=1)
    upright = [line.get_xdata()[0] for line in axis.lines[2:]]
    np.testing.assert_array_equal(upright, figures.dates(borders))


def test_thinning_keeps_the_extremes_and_the_ends():
    values = np.random.default_rng(0).standard_normal(100_000)
    rows = figures.thinned(values, 1_000)
    assert len(rows) <= 1_002
    assert (np.diff(rows) > 0).all()
    assert (rows[0], rows[-1]) == (0, 99_999)
    assert (values[rows].min(), values[rows].max()) == (values.min(), values.max())


@pytest.mark.parametrize(
    ("value", "digits", "sign", "wanted"),
    [
        (1234567.8, 0, False, "1,234,568"),
        (-1234.5, 1, False, "−1,234.5"),
        (12, 0, True, "+12"),
        (-0.4, 0, True, "0"),
        (0.0, 2, True, "0.00"),
    ],
)
def test_numbers_have_separators_and_no_signed_zero(value, digits, sign, wanted):
    assert figures.number(value, digits, sign) == wanted


def test_a_picture_is_written_whole(tmp_path):
    path = tmp_path / "new" / "costs.png"
    plots.save(trade_plots.cost_breakdown(trading(50), "costs"), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["costs.png"]


def test_no_screen_is_needed():
    modules = ("plots", "trade_plots", "return_plots", "learning_plots", "team_plots")
    code = (
        f"import sys, gm_jax.report.{', gm_jax.report.'.join(modules)}\n"
        "gm_jax.report.learning_plots.learning_curves([], 'none').canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
