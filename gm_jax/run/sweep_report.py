"""What a sweep came to: members and settings side by side, a ranking, and how far to believe it.

The ranking looks at validation alone. The test split is reported beside it, and chooses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gm_jax.report.significance import MIN_MEMBERS, deflated_sharpe, pbo
from gm_jax.run import trials
from gm_jax.run.results import REPORTED, interval, number
from gm_jax.run.sweep_plan import label


RANKED_BY = (
    "mean over the seeds of selection_score, the best score on validation during the training; a "
    "setting that broke down on some seed comes after all that did not; ties by the smaller "
    "deviation over seeds, then by the order of the grid; the test split is not looked at"
)
PBO_METHOD = (
    "combinatorially symmetric cross-validation (Bailey, Borwein, López de Prado and Zhu 2016): "
    "how often the member with the best Sharpe ratio on half of the sessions is at best average "
    "on the other half"
)
# figures of a backtest that the table of members has, by split
FIGURES = (
    *("sharpe_ratio", "sharpe_ci95", "sharpe_reason", "probabilistic_sharpe", "max_drawdown"),
    *("net_pnl", "exposure", "trades", "closed_early"),
)
Result = dict[str, Any]  # of a member, see `sweep.evaluate`


def report(
    members: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    tried: Mapping[str, Sequence[trials.Trial] | None],
) -> dict[str, Any]:
    """Return the table of members and of settings, the ranking, the best, and the chance in it.

    Args:
        members: what each is: `member`, `setting`, `seed`, `settings`.
        results: of each, in the same order.
        tried: every trial on the same bars by the bars' digest, see `results.known_trials`.
    """
    table = [
        {**member, **_row(result, tried[result["data_sha256"]])}
        for member, result in zip(members, results, strict=True)
    ]
    settings = compare(table)
    best = settings[0]
    return {
        "ranked_by": RANKED_BY,
        "ranking": [row["setting"] for row in settings],
        "best_setting": best["setting"],
        "best_member": _best_member(table, best["setting"]),
        "settings": settings,
        "members": table,
        "pbo": {name: overfitting(results, name) for name in REPORTED} | {"method": PBO_METHOD},
    }


def _row(result: Result, tried: Sequence[trials.Trial] | None) -> dict[str, Any]:
    """Return what the table says of a member."""
    return {
        **{key: result[key] for key in ("failed", "selection_score", "best_iteration")},
        "n_trials": None if tried is None else len(tried),
        **{name: _figures(result, name, tried) for name in REPORTED},
    }


def _figures(
    result: Result, name: str, tried: Sequence[trials.Trial] | None
) -> dict[str, Any] | None:
    found = result["splits"].get(name)
    if found is None:
        return None
    deflated = (
        None
        if tried is None or found["probabilistic_sharpe"] is None
        else deflated_sharpe(np.array(found["returns"]), trials.sharpes(tried, name))
    )
    return {key: found[key] for key in FIGURES} | {"deflated_sharpe": deflated}


def compare(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per setting, the best first: what its seeds have in common, and their spread.

    Args:
        table: of members; only `setting`, `settings`, `failed`, `selection_score` rank.
    """
    rows = []
    for setting in sorted({member["setting"] for member in table}):
        mine = [member for member in table if member["setting"] == setting]
        done = [member for member in mine if member["failed"] is None]
        splits = {
            f"{name}_{figure}": spread([member[name][figure] for member in done])
            for name in REPORTED
            for figure in ("sharpe_ratio", "max_drawdown", "net_pnl")
        }
        rows.append(
            {
                "setting": setting,
                "settings": mine[0]["settings"],
                "seeds": len(mine),
                "failed": len(mine) - len(done),
                "selection_score": spread([member["selection_score"] for member in done]),
                **splits,
            }
        )
    ranked = sorted(rows, key=_place)
    return [{"rank": rank, **row} for rank, row in enumerate(ranked, 1)]


def _place(row: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the key by which settings are sorted, see RANKED_BY."""
    score = row["selection_score"]
    mean = -math.inf if score["mean"] is None else score["mean"]
    return row["failed"], -mean, score["std"] or 0, row["setting"]


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean, sample deviation, least and greatest of what is known; None where nothing is."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    few = {"mean": None, "std": None, "min": None, "max": None, "known": len(known)}
    if not len(known):
        return few
    found = {"mean": known.mean(), "min": known.min(), "max": known.max()}
    found |= {"std": known.std(ddof=1)} if len(known) > 1 else {}
    return few | {name: float(value) for name, value in found.items()}


def _best_member(table: Sequence[Mapping[str, Any]], setting: int) -> int | None:
    """Return the member of a setting that scored best on validation, the first of equal ones."""
    scores = {
        member["member"]: member["selection_score"]
        for member in table
        if member["setting"] == setting and member["failed"] is None
    }
    known = {name: score for name, score in scores.items() if score is not None}
    return max(known, key=known.__getitem__) if known else None


def overfitting(results: Sequence[Result], name: str) -> dict[str, Any]:
    """Return the probability of backtest overfitting of all members on one split.

    On the sessions that all of them were played on; a member that broke down is left out.
    """
    done = [result for result in results if result["failed"] is None]
    found: dict[str, Any] = {"value": None, "members": len(done), "sessions": 0, "reason": None}
    if len(done) < MIN_MEMBERS:
        return found | {"reason": f"{len(done)} members, at least {MIN_MEMBERS} needed"}
    if len({result["data_sha256"] for result in done}) > 1:
        return found | {"reason": "the members were not trained on the same bars"}
    returns = [
        dict(
            zip(result["splits"][name]["sessions"], result["splits"][name]["returns"], strict=True)
        )
        for result in done
    ]
    common = sorted(set.intersection(*map(set, returns)))
    found["sessions"] = len(common)
    value = pbo(np.array([[own[session] for session in common] for own in returns]))
    if value is None:
        return found | {"reason": f"{len(common)} sessions are too few, or nothing moves"}
    return found | {"value": value}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ranking and what can be said of the best, for a person."""
    names = [label(row["settings"]) for row in found["settings"]]
    wide = max(map(len, [*names, "setting"]))
    yield f"rank  {'setting':<{wide}}  " + "  ".join(f"{title:>{w}}" for title, w, _ in _COLUMNS)
    for name, row in zip(names, found["settings"], strict=True):
        cells = (f"{text(row):>{w}}" for _, w, text in _COLUMNS)
        yield f"{row['rank']:>4}  {name:<{wide}}  {'  '.join(cells)}"
    rows, seeds = found["settings"], found["settings"][0]["seeds"]
    yield (
        f"mean ± deviation over {seeds} seed{'' if seeds == 1 else 's'}; ranked by the score on "
        "validation, the test split was not looked at"
    )
    if any(row[f"{name}_sharpe_ratio"]["known"] < seeds for row in rows for name in REPORTED):
        yield "(1 of 2): the mean of so many, the others have no Sharpe ratio"
    yield from _best_lines(found)


def _best_lines(found: Mapping[str, Any]) -> Iterator[str]:
    best = next(m for m in found["members"] if m["member"] == found["best_member"])
    yield f"best member: {label(best['settings'])}, seed {best['seed']}"
    tried = best["n_trials"] or "an unknown number of"
    for name in REPORTED:
        figures, chance = best[name], found["pbo"][name]
        ratio = (
            f"no Sharpe ratio: {figures['sharpe_reason']}"
            if figures["sharpe_ratio"] is None
            else f"Sharpe {number(figures['sharpe_ratio'])}{interval(figures['sharpe_ci95'], 2)}; "
            f"probability that it is above 0 after {tried} trials on these bars: "
            f"{number(figures['deflated_sharpe'])}"
        )
        yield (
            f"{name:<10}  {ratio}; drawdown {figures['max_drawdown']:.1%}, net P&L "
            f"{figures['net_pnl']:,.0f} USD"
        )
        why = f" ({chance['reason']})" if chance["reason"] else ""
        yield f"{name:<10}  probability of backtest overfitting: {number(chance['value'])}{why}"


def _mean(key: str, form: str) -> Any:
    """Return what writes the mean of a figure of a setting's row, and of how many seeds."""

    def text(row: Mapping[str, Any]) -> str:
        mean, known = row[key]["mean"], row[key]["known"]
        few = "" if known == row["seeds"] else f" ({known} of {row['seeds']})"
        return f"{'n/a' if mean is None else format(mean, form)}{few}"

    return text


def _score(row: Mapping[str, Any]) -> str:
    found = row["selection_score"]
    if found["mean"] is None:
        return "broke down"
    deviation = "" if found["std"] is None else f" ± {found['std']:.2f}"
    return f"{found['mean']:.2f}{deviation}"


# of the table for a person: title, width, text of a setting's row
_COLUMNS = (
    ("score", 14, _score),
    ("least", 7, lambda row: number(row["selection_score"]["min"])),
    ("most", 7, lambda row: number(row["selection_score"]["max"])),
    ("validation Sharpe", 17, _mean("validation_sharpe_ratio", ".2f")),
    ("test Sharpe", 11, _mean("test_sharpe_ratio", ".2f")),
    ("test drawdown", 13, _mean("test_max_drawdown", ".1%")),
    ("test net P&L USD", 16, _mean("test_net_pnl", ",.0f")),
    ("broke down", 10, lambda row: str(row["failed"] or "")),
)
