"""What a run came to: backtests of best and last, what chance could do, and it all on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.types import TrainState
from gm_jax.report.backtest import Ledger
from gm_jax.report.metrics import session_closes, session_returns, summarise
from gm_jax.report.significance import session_sharpe
from gm_jax.run import evaluation, mandate, trials
from gm_jax.run.directory import SCHEMA_VERSION, RunDirectory
from gm_jax.run.members import forget
from gm_jax.run.null_test import null_test
from gm_jax.run.oracles import fit_oracle
from gm_jax.run.progress import say, sparkline
from gm_jax.run.setup import Setup
from gm_jax.run.walk_forward import NAME, walk_forward
from gm_jax.settings import ANALYSES


REPORTED = ("validation", "test")
RESULTS = "validation_results.json"


def write_results(
    directory: RunDirectory,
    setup: Setup,
    state: TrainState,
    pbo: Mapping[str, float | None],
) -> dict[str, Any]:
    """Evaluate best and last, write, draw and tell; return what was written.

    What an analysis or a sweep has found about a run of this length is kept.

    Args:
        directory: of the run.
        setup: of the run.
        state: of the training.
        pbo: by split, what the sweep that chose this run found.
    """
    splits, ledgers = evaluate_splits(directory, setup, state)
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "system": setup.system.name,
        "iterations": int(state.iteration),
        "splits": splits,
        "walk_forward": None,
    }
    before = _stored(directory)
    if before.get("iterations") == results["iterations"]:
        results["walk_forward"] = before["walk_forward"]
        splits["test"]["null_test"] = before["splits"]["test"]["null_test"]
        pbo = pbo or {name: before["splits"][name]["pbo"] for name in splits}
    for name, value in pbo.items():
        splits[name]["pbo"] = value
    directory.write(RESULTS, results)
    history = directory.history()
    from gm_jax.run import pictures  # not before: matplotlib takes a third of a second of a start

    pictures.draw(directory, setup, history, splits, ledgers)
    tell(directory, history, results)
    return results


def analyse(
    directory: RunDirectory, setup: Setup, state: TrainState, results: dict[str, Any]
) -> None:
    """Do whatever analysis was asked for, and write and tell what it finds.

    Args:
        directory: of the run.
        setup: of the run.
        state: at its planned end.
        results: see `write_results`; what is found is added.

    Raises:
        StoppedEarlyError: a signal came; what was done is saved.
    """
    networks = learner.chosen(state)
    if setup.settings.walk_forward:
        results["walk_forward"] = _walk_forward(directory, setup)
        directory.write(RESULTS, results)
        say(f"walk-forward  {headline(results['walk_forward'])}")
    if setup.settings.null_copies:
        test = results["splits"]["test"]
        test["null_test"] = null_test(directory, setup, networks)
        directory.write(RESULTS, results)
        team = evaluation.team_ledger(setup, networks, setup.split.test)
        from gm_jax.run import pictures

        pictures.draw_returns(directory, team, test["null_test"])
        say(_null_line(test))


def _null_line(test: dict[str, Any]) -> str:
    found, few = test["null_test"], test["sharpe_ratio"] is None
    return (
        f"null test     timing adds {found['statistic']:+.2f} to the Sharpe ratio"
        f"{' (of too few sessions or no position)' if few else ''}, on {found['copies']} markets "
        f"without direction {found['null_mean']:+.2f} on average: p = {found['p_value']:.3f}"
    )


def _stored(directory: RunDirectory) -> dict[str, Any]:
    """Return what was written before, nothing where nothing was."""
    path = directory.path / RESULTS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def evaluate_splits(
    directory: RunDirectory, setup: Setup, state: TrainState
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Ledger]]]:
    """Backtest best and last sequentially; the best is what is reported and counted as a trial."""
    networks, oracle, most = learner.chosen(state), fit_oracle(setup), setup.settings.max_contracts
    found = {
        name: evaluation.evaluate(setup, networks, setup.split[name], oracle) for name in REPORTED
    }
    sharpes = {name: per_session(ledgers["team"]) for name, (_, ledgers) in found.items()}
    tried = record_trial(directory, setup, sharpes)
    splits = {}
    for name, (report, ledgers) in found.items():
        last = evaluation.team_ledger(setup, state.networks, setup.split[name])
        splits[name] = {
            **report,
            **evaluation.luck(ledgers["team"], tried, name),
            "targets": evaluation.targets(setup, report, name, learner.chosen_at(state)),
            "null_test": None,
            "in_sample": mandate.seen(setup.loaded.strategic, setup.loaded.bars, setup.split[name]),
            "selected_on": name == "validation",
            "last": summarise(last, most),
        }
    return splits, {name: ledgers for name, (_, ledgers) in found.items()}


def record_trial(
    directory: RunDirectory,
    setup: Setup,
    sharpes: dict[str, float | None],
    trained_on: str | None = None,
) -> list[trials.Trial] | None:
    """Enter a run into the trials file; return all trials on the same bars, see `known_trials`.

    A file that cannot be written is a warning: a report is not lost to its neighbours.

    Args:
        directory: of the run or the sweep.
        setup: of the run, with the bars that it was tried on.
        sharpes: by split, per session.
        trained_on: digest of the bars that it was trained on, where they are others.
    """
    settings = {k: v for k, v in setup.settings.to_json().items() if k not in ANALYSES}
    settings["mandate_sha256"] = setup.loaded.mandate_digest
    if trained_on not in (None, setup.loaded.digest):  # teams of several markets, tried on one
        settings["trained_on_sha256"] = trained_on
    entry = trials.trial(directory.path, setup.system.name, setup.loaded.digest, settings, sharpes)
    try:
        trials.record(trials.beside(directory.path), entry)
    except UserError as error:
        say(f"warning: this trial is not counted: {error}")
    return known_trials(directory, setup)


def known_trials(directory: RunDirectory, setup: Setup) -> list[trials.Trial] | None:
    """Return all trials on the same bars; None, with a warning, where the file cannot be used."""
    path = trials.beside(directory.path)
    try:
        return trials.known(path, setup.loaded.digest, setup.system.name)
    except UserError as error:
        say(f"warning: the number of trials is not known: {error}")
        return None


def per_session(ledger: Ledger) -> float | None:
    """Return the Sharpe ratio of session returns, not annualised."""
    closes = session_closes(ledger.start_equity, ledger.curve, ledger.session)
    return session_sharpe(session_returns(closes))


def stored(directory: RunDirectory, state: TrainState, split: str, figure: str) -> Any:
    """Return a figure that an evaluation cannot find anew, `null_test` or `pbo`; None without.

    What was found of other networks, before a resume, is none of these.
    """
    found = _stored(directory)
    if found.get("iterations") != int(state.iteration):
        return None
    return found["splits"].get(split, {}).get(figure)


def stored_iterations(directory: RunDirectory) -> int | None:
    """Return after how many iterations a run was last reported on; None if it never was."""
    found: int | None = _stored(directory).get("iterations")
    return found


def _walk_forward(directory: RunDirectory, setup: Setup) -> dict[str, Any]:
    """Return the report of the walk-forward, of an earlier try if that was whole."""
    path = directory.path / "walk_forward.json"
    settings = setup.settings
    asked = {"folds": settings.walk_forward, "num_episodes": settings.num_episodes}
    if path.exists():
        before = json.loads(path.read_text())
        if before["asked"] == asked:
            return dict(before["report"])
    report, ledgers, borders = walk_forward(directory, setup)
    team, name = ledgers["team"], f"{NAME}_{settings.walk_forward}"  # so many folds, those bars
    tried = record_trial(directory, setup, {name: per_session(team)})
    report |= evaluation.luck(team, tried, name)
    directory.write(path.name, {"asked": asked, "report": report})
    forget(directory, NAME)
    from gm_jax.run import pictures

    pictures.draw_walk_forward(directory, ledgers, borders)
    return report


def tell(directory: RunDirectory, history: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Say in a few lines what came out."""
    if history:
        shared = [row["terms"]["equity"] for row in history]
        say(
            f"learning curve  {sparkline(shared)}  {shared[0]:+.0f} → {shared[-1]:+.0f} bp a window"
        )
    for name, report in results["splits"].items():
        say(f"{name:<10}  {headline(report)}")
    test = results["splits"]["test"]
    for line in (*chance(test), *worth(test), *aims(test)):
        say(f"{'test':<10}  {line}")
    say(f"run directory   {directory.path}")


def chance(report: dict[str, Any]) -> list[str]:
    """Return what chance could do about the Sharpe ratio, a line; none where there is no ratio."""
    if report["sharpe_ratio"] is None:
        return [f"no Sharpe ratio: {report['sharpe_reason']}"]
    tried = report["n_trials"] or "an unknown number of"
    return [
        f"Sharpe 95 % interval{interval(report['sharpe_ci95'], 2)}; probability that it is above "
        f"0: {number(report['probabilistic_sharpe'])}, after {tried} "
        f"trial{'' if tried == 1 else 's'} on these bars: {number(report['deflated_sharpe'])}"
    ]


def aims(report: dict[str, Any]) -> list[str]:
    """Return a line per target: what was wanted, what came, whether it is met."""
    return [
        f"target {name.replace('_', ' ')} {found['target']}: {number(found['value'])}, "
        f"{'met' if found['met'] else 'not met'}"
        for name, found in report["targets"].items()
    ]


def headline(report: dict[str, Any]) -> str:
    """Return the figures of one split that a person reads first."""
    sharpe = {"team": report["sharpe_ratio"], "oracle": report["oracle_sharpe"]}
    sharpe["buy and hold"] = report["baselines"]["buy_and_hold"]["sharpe_ratio"]
    if report["oracle_sharpe"] is None:
        del sharpe["oracle"]
    costs = report["commission"] + report["spread_cost"] + report["impact_cost"]
    return (
        f"after-cost Sharpe: {', '.join(f'{k} {number(v)}' for k, v in sharpe.items())}; "
        f"drawdown {report['max_drawdown']:.1%}, net P&L {report['net_pnl']:,.0f} USD of which "
        f"costs {costs:,.0f}"
        + _closed_early(report)
        + ("; in-sample" if report.get("in_sample") else "")
    )


def _closed_early(report: dict[str, Any]) -> str:
    """Say why the account was closed early, or those of some folds of a walk-forward."""
    folds = {f"fold {i} ": fold for i, fold in enumerate(report.get("folds", ()), 1)}
    return "".join(
        f"; {name}closed early by {account['closed_early']['reason']}"
        for name, account in (folds or {"": report}).items()
        if account["closed_early"]
    )


# figures of the table for a person: key of a report, heading, format
_COLUMNS = (
    ("sharpe_ratio", "Sharpe", ".2f"),
    ("sortino_ratio", "Sortino", ".2f"),
    ("max_drawdown", "drawdown", ".1%"),
    ("net_pnl", "net P&L USD", ",.0f"),
    ("gross_pnl", "gross", ",.0f"),
    ("exposure", "exposure", ".2f"),
    ("turnover", "contracts", ",.0f"),
    ("trades", "trades", ",d"),
    ("win_rate_trades", "won", ".0%"),
    ("profit_factor", "profit factor", ".2f"),
)


def table(report: dict[str, Any]) -> list[str]:
    """Return a split's figures as lines, one per policy."""
    rows = {"team": report, **report["baselines"]}
    if report["oracle_sharpe"] is not None:
        rows["oracle"] = report["oracle"]
    first = max(map(len, rows)) + 1
    head = "".join(f"{title:>{len(title) + 3}}" for _, title, _ in _COLUMNS)
    return [
        " " * first + head,
        *(f"{name.replace('_', ' '):<{first}}{_row(found)}" for name, found in rows.items()),
    ]


def _row(report: dict[str, Any]) -> str:
    found = ((report[key], len(title) + 3, form) for key, title, form in _COLUMNS)
    cells = (("n/a" if x is None else format(x, form), width) for x, width, form in found)
    return "".join(f"{text:>{width}}" for text, width in cells)


def worth(report: dict[str, Any]) -> list[str]:
    """Return a line per agent: what the team has with it and would not have with its neutral."""
    lines = []
    for agent, instead in report["agent_contributions"].items():
        found = instead["neutral"]
        figures = (
            f"{name} {found[key]:+,.{digits}f}{interval(found[f'{key}_ci95'], digits)}"
            for name, key, digits in (("net P&L", "net_pnl", 0), ("Sharpe", "sharpe_ratio", 2))
            if found[key] is not None
        )
        lines.append(f"worth of {agent} against its neutral: {', '.join(figures)}")
    return lines


def interval(bounds: Sequence[float] | None, digits: int) -> str:
    """Write an interval after the figure it belongs to; nothing where there is none."""
    return "" if bounds is None else f" ({bounds[0]:+,.{digits}f} to {bounds[1]:+,.{digits}f})"


def number(x: float | None) -> str:
    """Write a figure that may be missing."""
    return "n/a" if x is None else f"{x:,.2f}"
