"""Pictures of a run: matplotlib figures from plain data, safe without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gm_jax.report.backtest import Ledger


def _figure(rows: int) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = BytesIO()
    figure.savefig(picture, dpi=120)
    part = path.with_name(path.name + ".part")
    part.write_bytes(picture.getvalue())
    part.replace(path)


def learning_curve(history: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw reward per agent, validation score and entropy over iterations.

    Args:
        history: rows of metrics.jsonl.
        title: what was trained.
    """
    figure, (rewards, validation, entropy) = _figure(3)
    iteration = [row["iteration"] for row in history]
    for agent in history[0]["reward"]:
        rewards.plot(iteration, [row["reward"][agent] for row in history], label=agent, lw=1.3)
        entropy.plot(iteration, [row["entropy"][agent] for row in history], label=agent, lw=1.3)
    scored = [row for row in history if row["selection_score"] is not None]
    validation.plot(
        [row["iteration"] for row in scored],
        [row["selection_score"] for row in scored],
        "o-",
        color="black",
        ms=4,
        lw=1.3,
    )
    rewards.set(title=title, ylabel="reward, bp a window")
    rewards.axhline(0, color="grey", lw=0.8)
    validation.set(ylabel="validation score")
    validation.axhline(0, color="grey", lw=0.8)
    entropy.set(ylabel="entropy, nats", xlabel="iteration", ylim=(0, None))
    for axis in (rewards, entropy):
        axis.legend(frameon=False, ncols=3)
    return figure


def equity_curve(ledgers: Mapping[str, Ledger], title: str, most: int) -> Figure:
    """Draw equity of the team against the others, and the team's position.

    Args:
        ledgers: by name, `team` among them.
        title: of the split.
        most: contracts, the largest position.
    """
    figure, (equity, position) = _figure(2)
    for name, ledger in ledgers.items():
        time = ledger.time.astype("datetime64[ns]")
        style = {"color": "black", "lw": 1.8, "zorder": 3} if name == "team" else {"lw": 1.0}
        label = f"{name.replace('_', ' ')}, ≤ {abs(ledger.position).max()}"
        equity.plot(time, ledger.equity / 100, label=label, **style)
    equity.set(title=title, ylabel="net equity, USD")
    equity.legend(frameon=False, ncols=2, title="policy, most contracts held")
    equity.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    team = ledgers["team"]
    time = team.time.astype("datetime64[ns]")
    position.fill_between(time, team.position, step="post", color="black", alpha=0.5, lw=0)
    low = -most if (team.position < 0).any() else 0
    position.set(ylabel="team's position, contracts", ylim=(low, most))
    position.tick_params(axis="x", rotation=30)
    return figure
