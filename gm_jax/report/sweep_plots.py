"""The picture of a sweep: every setting's members side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gm_jax.report import figures
from gm_jax.report.figures import BLUE, GREY, INK, VERMILION, number, style


MOST_ROWS = 40  # settings whose names fit beside each other


def settings_side_by_side(
    settings: Sequence[Mapping[str, Any]],
    members: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    title: str,
) -> Figure:
    """Draw each setting's members and their mean, the best setting on top.

    Left what ranks, the score on validation; right what does not, the test split.

    Args:
        settings: ranked rows, see `sweep_report.compare`.
        members: their rows.
        names: of the settings, in the same order.
        title: what was trained.
    """
    shown = settings[:MOST_ROWS]
    left_out = len(settings) - len(shown)
    more = f"  (the best {len(shown)} of {len(settings)} settings)" if left_out else ""
    figure = figures.canvas(13, 1.9 + 0.32 * len(shown), title + more)
    axes = figure.subplots(1, 2, sharey=True)
    scores = [[m["selection_score"] for m in _of(members, row)] for row in shown]
    tests = [[m["test"] and m["test"]["sharpe_ratio"] for m in _of(members, row)] for row in shown]
    style(axes[0], "Ranked by: best score on validation", xlabel="Sharpe ratio, else bp a bar")
    style(axes[1], "Beside it, not looked at: test split", xlabel="Sharpe ratio after costs")
    for axis, values, color in zip(axes, (scores, tests), (BLUE, GREY), strict=True):
        _draw(axis, values, color)
    axes[0].set_yticks(range(len(shown)), names[: len(shown)])
    axes[0].set_ylim(len(shown) - 0.5, -0.5)  # the best on top
    best = _of(members, shown[0])
    top = max(
        (m["selection_score"] for m in best if m["selection_score"] is not None), default=None
    )
    if top is not None:
        axes[0].plot(top, 0, "*", color=VERMILION, ms=13, zorder=6, label="best member")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        **{"loc": "upper right", "ncols": 3, "frameon": False, "fontsize": 9},
    )
    return figure


def _of(members: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [member for member in members if member["setting"] == row["setting"]]


def _draw(axis: Axes, rows: Sequence[Sequence[float | None]], color: str) -> None:
    """Draw a row of points for each setting, their mean, and its figure at the edge."""
    for place, values in enumerate(rows):
        known = np.array([value for value in values if value is not None])
        if place % 2:
            axis.axhspan(place - 0.5, place + 0.5, color=GREY, alpha=0.08, lw=0)
        text = "none"
        if len(known):
            names = ("a seed", "mean over seeds") if not place else (None, None)
            look: dict[str, Any] = {"color": color, "alpha": 0.65}
            axis.hlines(place, known.min(), known.max(), lw=1, **look)
            axis.plot(known, [place] * len(known), "o", ms=5.5, label=names[0], **look)
            axis.plot(known.mean(), place, "|", color=INK, ms=15, mew=2.4, label=names[1])
            text = number(float(known.mean()), 2, sign=True)
        few = f"  ({len(known)} of {len(values)})" if len(known) < len(values) else ""
        where: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "va": "center",
            "fontsize": 8.5,
        }
        axis.annotate(text + few, (1.005, place), **where)
    low, high = axis.get_xlim()
    if low < 0 < high:
        axis.axvline(0, color=GREY, lw=0.8)
