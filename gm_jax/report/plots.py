"""Pictures of an account's equity: matplotlib figures from plain data, safe without a screen.

Money on the axes is USD, time UTC. What has more rows than a picture has pixels is thinned so that
extremes stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gm_jax.report import figures
from gm_jax.report.backtest import Ledger
from gm_jax.report.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALETTE,
    PURPLE,
    VERMILION,
    dates,
    number,
    style,
)


MOST_LABELS = 12  # folds whose names fit beside each other
COLORS = {"buy_and_hold": BLUE, "sma_crossover": GREEN, "random": PURPLE, "flat": GREY}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = BytesIO()
    figure.savefig(picture, dpi=120)
    part = path.with_name(path.name + ".part")
    part.write_bytes(picture.getvalue())
    part.replace(path)


def equity_and_drawdown(ledgers: Mapping[str, Ledger], title: str) -> Figure:
    """Draw net equity of the team against the others, and the team's drawdown.

    Args:
        ledgers: by name, `team` among them, over the same bars.
        title: of the figure.
    """
    figure = figures.canvas(12, 6.6, title)
    equity, drawdown = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    style(equity, "Net equity after all costs", ylabel="net equity, USD")
    gains = [_usd(ledger.final_equity - ledger.start_equity) for ledger in ledgers.values()]
    for i, (name, ledger) in enumerate(ledgers.items()):
        label = f"{figures.readable(name)}  {number(gains[i], sign=True)}"
        most = np.abs(ledger.position).max(initial=0)
        _line(equity, ledger, _usd(ledger.curve), label=f"{label}  (≤ {most})", **_look(name, i))
    best_first = [equity.lines[i] for i in np.argsort(-np.array(gains), kind="stable")]
    figures.key(equity, "net P&L, USD  (most contracts)", best_first)
    figures.in_usd(equity)
    _draw_drawdown(drawdown, ledgers)
    _mark_end(equity, ledgers["team"])
    figures.in_time(equity, drawdown)
    return figure


def _draw_drawdown(axis: Axes, ledgers: Mapping[str, Ledger]) -> None:
    team = ledgers["team"]
    curve = _drawdown(team)
    day = str(dates(_times(team))[curve.argmin()])[:10]
    worst = f"{number(-100 * curve.min(), 1)} % on {day}" if curve.min() < 0 else "none"
    style(axis, f"Drawdown of the team, at worst: {worst}", ylabel="below peak, %")
    rows = figures.thinned(curve)
    axis.fill_between(dates(_times(team)[rows]), curve[rows], color=INK, alpha=0.15, lw=0)
    _line(axis, team, curve, label="team", color=INK, lw=1.2)
    if "buy_and_hold" in ledgers:
        hold = ledgers["buy_and_hold"]
        _line(axis, hold, _drawdown(hold), label="buy and hold", color=BLUE, lw=0.9, alpha=0.45)
    axis.margins(y=0.03)
    axis.set_ylim(bottom=min(axis.get_ylim()[0], -0.01), top=0)
    figures.in_percent(axis.yaxis, -axis.get_ylim()[0])
    figures.key(axis)


def _look(name: str, place: int) -> dict[str, Any]:
    if name == "team":
        return {"color": INK, "lw": 2.4, "zorder": 5}
    if name == "oracle":
        return {"color": ORANGE, "lw": 1.8, "zorder": 4}
    kind, same_size, _ = name.partition("_same_")
    color = COLORS.get(kind, PALETTE[place % len(PALETTE)])
    dashes = "--" if same_size else "-" if kind in COLORS else ":"
    return {"color": color, "ls": dashes, "lw": 1.1, "alpha": 0.65}


def _mark_end(axis: Axes, team: Ledger) -> None:
    """Mark where the team's account was closed early."""
    closed = team.closed_by()
    if closed is not None:
        reason, row = closed
        axis.axvline(dates(team.time)[row], color=VERMILION, lw=1, ls=":")
        axis.annotate(
            f" closed: {reason}",
            (dates(team.time)[row], 0.02),
            xycoords=("data", "axes fraction"),
            color=VERMILION,
            fontsize=8.5,
        )


def walk_forward(ledger: Ledger, borders: Sequence[int], title: str) -> Figure:
    """Draw equity out of sample, joined over folds, with what each fold earned.

    Args:
        ledger: of all folds, one after the other.
        borders: first bar of each fold, i64 ns UTC, ascending.
        title: of the figure.
    """
    figure = figures.canvas(12, 5, title)
    axis = style(
        figure.subplots(),
        "Net equity out of sample, and what each fold earned",
        ylabel="net equity, USD",
    )
    _line(axis, ledger, _usd(ledger.curve), color=INK, lw=1.6)
    axis.axhline(_usd(ledger.start_equity), color=GREY, lw=0.8, ls="--")
    starts = np.asarray(borders, dtype=np.int64)
    rows = np.searchsorted(ledger.time, starts)
    equity = _usd(np.append(ledger.curve[rows], ledger.final_equity))
    ends = np.append(starts, ledger.time[-1])[1:]
    every = -(-len(starts) // MOST_LABELS) or 1
    for i, (start, end) in enumerate(zip(dates(starts), dates(ends), strict=True)):
        axis.axvline(start, color=VERMILION, lw=0.9, ls=":")
        if i % 2:
            axis.axvspan(start, end, color=GREY, alpha=0.1, lw=0)
        if i % every == 0:
            text = f"fold {i + 1}\n{number(equity[i + 1] - equity[i], sign=True)}"
            where = (start + (end - start) / 2, 0.98)
            axis.annotate(
                text,
                where,
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=8,
                bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1},
            )
    axis.margins(y=0.2)
    figures.in_usd(axis)
    figures.in_time(axis)
    return figure


def _usd(cents: Any) -> Any:
    return cents / 100


def _times(ledger: Ledger) -> np.ndarray:
    """Return when each point of the ledger's curve is, [n + 1]."""
    return np.append(ledger.time, ledger.time[-1])


def _drawdown(ledger: Ledger) -> np.ndarray:
    curve = ledger.curve.astype(np.float64)
    peak = np.maximum.accumulate(np.append(ledger.start_equity, curve))[1:]
    return curve / peak - 1


def _line(axis: Axes, ledger: Ledger, values: np.ndarray, **look: Any) -> None:
    """Draw a value of each point of the ledger's curve, [n + 1]."""
    rows = figures.thinned(values)
    marker = "o" if len(ledger.time) == 1 else ""
    axis.plot(dates(_times(ledger)[rows]), values[rows], marker=marker, **look)
