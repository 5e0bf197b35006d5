"""Pictures of learning: rewards, validation and the learner's own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gm_jax.report import figures
from gm_jax.report.figures import GREY, INK, PALETTE, VERMILION, number, style


PANELS = (  # key of a row, title, unit
    ("reward", "Reward", "bp a window"),
    ("terms", "Reward terms, each by itself", "bp a window"),
    ("selection_score", "Score on validation", "Sharpe ratio, else bp a bar"),
    ("entropy", "Entropy of the policy", "nats"),
    ("approx_kl", "Change of the policy an update", "approximate KL, nats"),
    ("explained_variance", "What the critic explains", "explained variance"),
    ("actor_loss", "Loss of the actor", "loss"),
    ("critic_loss", "Loss of the critic", "loss, normalised"),
    ("cost_usd", "Costs paid", "USD a window"),
)
FROM_ZERO = ("entropy", "approx_kl", "critic_loss", "cost_usd")
Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: iterations, values


def learning_curves(history: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw rewards, validation and the learner's own figures over iterations.

    Args:
        history: rows of metrics.jsonl; what a row lacks or has as None is left out.
        title: what was trained.
    """
    over = _window(len(history))
    means = f"  (bold: running mean of {over} iterations)" if over > 1 else ""
    figure = figures.canvas(13, 8.4, title + means)
    axes = figure.subplots(3, 3).flat
    agents = list(history[0].get("reward", ())) if history else []
    colors = dict(zip(agents, PALETTE, strict=False)) | {"equity": INK}
    for axis, (key, name, unit) in zip(axes, PANELS, strict=True):
        style(axis, name, "iteration", unit)
        curves = _curves(history, key)
        _draw_curves(axis, curves, colors)
        if key == "selection_score" and curves:
            _mark_best(axis, *curves[key])
        _bound(axis, key, [y for _, y in curves.values()])
        if key in ("reward", "terms") and curves:  # readable where it has to lie on a curve
            axis.legend(framealpha=0.85, edgecolor="none", fontsize=8)
    return figure


def _curves(history: Sequence[Mapping[str, Any]], key: str) -> Curves:
    """Return what a key holds, by agent or term, or under its own name where it is one number."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        value = row.get(key)
        for name, x in (value if isinstance(value, Mapping) else {key: value}).items():
            if x is not None:
                found.setdefault(name, []).append((row["iteration"], x))
    columns = {name: np.array(pairs, dtype=np.float64).T for name, pairs in found.items()}
    return {name: (x, y) for name, (x, y) in columns.items()}


def _draw_curves(axis: Axes, curves: Curves, colors: Mapping[str, str]) -> None:
    """Draw each curve, a long noisy one pale under its running mean."""
    if not curves:
        figures.say(axis, "nothing recorded yet")
        return
    others = cycle(PALETTE[3:] + PALETTE[:3])
    for i, (name, (x, y)) in enumerate(curves.items()):
        color = colors.get(name) or (INK if len(curves) == 1 else next(others))
        over = _window(len(x))
        # agents with the same reward have the same curve: the lower one stays visible
        width = max(2.8 - 0.9 * i, 1.0) if len(curves) > 1 else 1.5
        few = "o" if len(x) <= 30 else ""
        look: dict[str, Any] = {"color": color, "marker": few, "ms": 2 * width + 1}
        label = figures.readable(name)
        if over > 1:
            axis.plot(x, y, lw=0.7, alpha=0.3, **look)
            mean = np.convolve(y, np.full(over, 1 / over), mode="valid")
            axis.plot(x[over - 1 :], mean, lw=width, color=color, label=label)
        else:
            axis.plot(x, y, lw=width, label=label, **look)
    low, high = axis.get_ylim()
    if low < 0 < high:
        axis.axhline(0, color=GREY, lw=0.8, zorder=1)
    ends = [x[[0, -1]] for x, _ in curves.values()]
    beside = 0.02 * np.ptp(ends) + 0.5
    axis.set_xlim(np.min(ends) - beside, np.max(ends) + beside)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.yaxis.set_major_formatter(figures.plain)


def _window(count: int) -> int:
    """Return over how many iterations a curve of so many is averaged."""
    return count // 20


def _bound(axis: Axes, key: str, values: list[np.ndarray]) -> None:
    """Set the vertical range where a natural one exists.

    A critic's first guesses are far off and would flatten the rest: what is cut is said.
    """
    every = np.concatenate([*values, np.zeros(1)])
    least, most = float(every.min()), float(every.max())
    if key in FROM_ZERO and values and least >= 0:
        top = 1.08 * min(most, 3 * float(np.quantile(every, 0.9))) or 1.0
        axis.set_ylim(0, top)
        if most > top:
            _say_cut(axis, f"↑ to {figures.plain(most)}", 0.96)
    if key == "explained_variance" and values:
        bottom = max(least, float(np.quantile(every, 0.1)) - 0.5) - 0.05
        axis.set_ylim(bottom, 1.05)
        if least < bottom:
            _say_cut(axis, f"↓ to {figures.plain(least)}", 0.04)


def _say_cut(axis: Axes, text: str, height: float) -> None:
    look: dict[str, Any] = {"transform": axis.transAxes, "fontsize": 8, "color": "#555555"}
    axis.text(0.97, height, text, ha="right", va="top" if height > 0.5 else "bottom", **look)


def _mark_best(axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
    best = int(np.argmax(y))
    text = f"best {number(y[best], 2)} at {x[best]:.0f}"
    axis.plot(x[best], y[best], "*", color=VERMILION, ms=11, zorder=5, label=text)
    axis.legend(frameon=False, fontsize=8)
