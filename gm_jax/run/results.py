"""What a run came to: backtests of best and last, plots, statistics, a few lines for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm_jax.mappo.types import Networks, TrainState
from gm_jax.report import plots
from gm_jax.report.metrics import summarise
from gm_jax.run import evaluation
from gm_jax.run.directory import SCHEMA_VERSION, RunDirectory
from gm_jax.run.progress import say, sparkline
from gm_jax.run.setup import Setup


REPORTED = ("validation", "test")


def chosen(state: TrainState) -> Networks:
    """Return the networks that validation chose, or the newest before its first."""
    scored = math.isfinite(float(state.best.score))
    return state.best.networks if scored else state.networks


def write_results(directory: RunDirectory, setup: Setup, state: TrainState) -> None:
    """Evaluate best and last, write validation_results.json and the plots, and tell about it."""
    history = directory.history()
    if history:
        title = f"{setup.system.name} on {Path(setup.loaded.label).name}"
        figure = plots.learning_curve(history, title)
        plots.save(figure, directory.plots / "learning_curve.png")
    results = {
        "schema_version": SCHEMA_VERSION,
        "system": setup.system.name,
        "splits": validation_results(directory, setup, state),
    }
    directory.write("validation_results.json", results)
    tell(directory, history, results)


def validation_results(directory: RunDirectory, setup: Setup, state: TrainState) -> dict[str, Any]:
    """Backtest best and last sequentially; the best is what is reported and drawn."""
    oracle = evaluation.fit_oracle(setup)
    most = setup.settings.max_contracts
    splits = {}
    for name in REPORTED:
        span = setup.split[name]
        report, ledgers = evaluation.evaluate(setup, chosen(state), span, oracle)
        last = evaluation.team_ledger(setup, state.networks, span)
        splits[name] = {**report, "last": summarise(last, most)}
        figure = plots.equity_curve(ledgers, f"{name}: net equity after costs", most)
        plots.save(figure, directory.plots / f"equity_{name}.png")
    return splits


def tell(directory: RunDirectory, history: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Say in a few lines what came out."""
    if history:
        shared = [row["terms"]["equity"] for row in history]
        say(
            f"learning curve  {sparkline(shared)}  {shared[0]:+.0f} → {shared[-1]:+.0f} bp a window"
        )
    for name, report in results["splits"].items():
        say(f"{name:<10}  {headline(report)}")
    for line in worth(results["splits"]["test"]):
        say(f"{'test':<10}  {line}")
    say(f"run directory   {directory.path}")


def headline(report: dict[str, Any]) -> str:
    """Return the figures of one split that a person reads first."""
    sharpe = {"team": report["sharpe_ratio"], "oracle": report["oracle_sharpe"]}
    sharpe["buy and hold"] = report["baselines"]["buy_and_hold"]["sharpe_ratio"]
    if report["oracle_sharpe"] is None:
        del sharpe["oracle"]
    costs = report["commission"] + report["spread_cost"] + report["impact_cost"]
    closed = report["closed_early"]
    return (
        f"after-cost Sharpe: {', '.join(f'{k} {_number(v)}' for k, v in sharpe.items())}; "
        f"drawdown {report['max_drawdown']:.1%}, net P&L {report['net_pnl']:,.0f} USD of which "
        f"costs {costs:,.0f}" + (f"; closed early by {closed['reason']}" if closed else "")
    )


def table(report: dict[str, Any]) -> list[str]:
    """Return a split's figures as lines, a column per policy."""
    columns = {"team": report, **report["baselines"]}
    keys = [k for k in report["baselines"]["flat"] if k not in ("sharpe_reason", "closed_early")]
    width = {name: max(len(name), 10) + 3 for name in columns}
    head = f"{'':<22}" + "".join(f"{name.replace('_', ' '):>{width[name]}}" for name in columns)
    rows = (
        f"{key:<22}" + "".join(f"{_number(v[key]):>{width[name]}}" for name, v in columns.items())
        for key in keys
    )
    last = f"{'oracle_sharpe':<22}{_number(report['oracle_sharpe']):>{width['team']}}"
    return [head, *rows, last]


def worth(report: dict[str, Any]) -> list[str]:
    """Return a line per agent: what the team has with it and would not have with its neutral."""
    lines = []
    for agent, instead in report["agent_contributions"].items():
        found = instead["neutral"]
        figures = (
            f"{name} {found[key]:+,.{digits}f}{_interval(found[f'{key}_ci95'], digits)}"
            for name, key, digits in (("net P&L", "net_pnl", 0), ("Sharpe", "sharpe_ratio", 2))
            if found[key] is not None
        )
        lines.append(f"worth of {agent} against its neutral: {', '.join(figures)}")
    return lines


def _interval(bounds: Sequence[float] | None, digits: int) -> str:
    return "" if bounds is None else f" ({bounds[0]:+,.{digits}f} to {bounds[1]:+,.{digits}f})"


def _number(x: float | None) -> str:
    return "n/a" if x is None else f"{x:,.2f}"
