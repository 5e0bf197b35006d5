"""The pictures of a run, drawn into `plots/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gm_jax.market.regimes import REGIMES
from gm_jax.report import (
    learning_plots,
    plots,
    return_plots,
    team_plots,
    trade_plots,
)
from gm_jax.report.backtest import Ledger
from gm_jax.report.metrics import session_closes, session_returns
from gm_jax.run.directory import RunDirectory
from gm_jax.run.setup import Setup


def draw(
    directory: RunDirectory,
    setup: Setup,
    history: list[dict[str, Any]],
    splits: Mapping[str, dict[str, Any]],
    ledgers: Mapping[str, dict[str, Ledger]],
) -> None:
    """Draw how the team learnt and what it did on validation and test.

    Args:
        directory: of the run.
        setup: of the run.
        history: rows of metrics.jsonl.
        splits: reports by split.
        ledgers: by split and policy.
    """
    folder, system = directory.plots, setup.system
    if history:
        title = f"{system.name} on {Path(setup.loaded.label).name}"
        plots.save(learning_plots.learning_curves(history, title), folder / "learning_curve.png")
    for name, own in ledgers.items():
        figure = plots.equity_and_drawdown(own, f"{name}: net equity after costs")
        plots.save(figure, folder / f"equity_{name}.png")
    team, span = ledgers["test"]["team"], slice(*setup.split.test)
    close, labels = setup.loaded.bars.close[span], setup.regimes[span]
    worth = splits["test"]["agent_contributions"]
    figures = {
        "position": trade_plots.price_and_position(
            team, close, "test: price and position", setup.settings.max_contracts
        ),
        "costs": trade_plots.cost_breakdown(team, "test: where the money went"),
        "actions": team_plots.action_use(
            team, system.agents, system.actions, labels, REGIMES, "test: actions by regime"
        ),
        "coordination": team_plots.coordination(
            team, system.agents, system.actions, worth, "test: how the agents act together"
        ),
    }
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}_test.png")
    draw_returns(directory, team, splits["test"]["null_test"])


def draw_returns(directory: RunDirectory, team: Ledger, null: Mapping[str, Any] | None) -> None:
    """Draw session returns of the test split, and the null test where there is one."""
    closes = session_closes(team.start_equity, team.curve, team.session)
    title = "test: session returns"
    shown = null and {**null, "real": null["statistic"]}
    figure = return_plots.return_distribution(session_returns(closes), title, shown)
    plots.save(figure, directory.plots / "returns_test.png")


def draw_walk_forward(
    directory: RunDirectory, ledgers: Mapping[str, Ledger], borders: Sequence[int]
) -> None:
    """Draw the account that the folds' test pieces make.

    Args:
        directory: of the run.
        ledgers: by policy, over all pieces.
        borders: time of the first bar of each piece, ns UTC.
    """
    figure = plots.walk_forward(ledgers["team"], borders, "walk-forward: each fold out of sample")
    plots.save(figure, directory.plots / "walk_forward.png")
