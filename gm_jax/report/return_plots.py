"""Pictures of session returns, and of what chance would have earned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gm_jax.report import figures
from gm_jax.report.figures import BLUE, GREY, INK, ORANGE, VERMILION, number, style
from gm_jax.report.metrics import MIN_TAIL_SESSIONS, tail_losses


def return_distribution(
    returns: np.ndarray, title: str, null: Mapping[str, Any] | None = None
) -> Figure:
    """Draw how session returns are distributed and, if given, the null test.

    Args:
        returns: [sessions] f64, fractions.
        title: of the figure.
        null: `real`, the statistic; `null`, those of signless copies of the market; `p_value`.
    """
    figure = figures.canvas(12 if null else 8, 4.6, title)
    axes = figure.subplots(1, 2 if null else 1, squeeze=False)[0]
    returns = np.asarray(returns, dtype=np.float64)
    name = f"Sessions: {len(returns):,}"
    style(axes[0], name, xlabel="return of a session, %", ylabel="sessions")
    if len(returns):
        _histogram(axes[0], returns, BLUE)
        _mark_tail(axes[0], returns)
        axes[0].axvline(0, color=GREY, lw=0.8)
        axes[0].axvline(returns.mean(), color=INK, lw=1.4, label=_named("mean", returns.mean()))
        figures.in_percent(axes[0].xaxis, float(np.ptp(returns)) or 0.02)
        axes[0].margins(y=0.25)
        axes[0].legend(frameon=False, fontsize=8.5)
    else:
        figures.say(axes[0], "no sessions")
    if null:
        _draw_null(axes[1], null)
    return figure


def _named(name: str, fraction: float) -> str:
    return f"{name} {number(100 * fraction, 2)} %"


def _histogram(axis: Axes, values: np.ndarray, color: str) -> None:
    wide = np.ptp(values) > 0
    bins: Any = max(5, min(60, round(2 * len(values) ** 0.5))) if wide else 1
    reach = None if wide else (values[0] - 0.01, values[0] + 0.01)
    axis.hist(values, bins=bins, range=reach, color=color, alpha=0.75, ec="white", lw=0.4)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def _mark_tail(axis: Axes, returns: np.ndarray) -> None:
    var, cvar = tail_losses(returns)
    if var is None or cvar is None:
        axis.plot([], [], " ", label=f"fewer than {MIN_TAIL_SESSIONS} sessions: no VaR")
        return
    axis.axvline(-var, color=ORANGE, lw=1.6, ls="--", label=_named("VaR 95 %:", var))
    axis.axvline(-cvar, color=VERMILION, lw=1.6, ls="-.", label=_named("CVaR 95 %:", cvar))


def _draw_null(axis: Axes, null: Mapping[str, Any]) -> None:
    found = np.asarray(null["null"], dtype=np.float64)
    p_value = null["p_value"]
    name = f"Null test: {len(found)} markets without direction"
    name += f", p = {p_value:.3g}" if p_value is not None else ""
    style(
        axis, name, xlabel="Sharpe ratio minus that of holding the mean exposure", ylabel="markets"
    )
    if not len(found):
        figures.say(axis, "not tested")
        return
    _histogram(axis, found, GREY)
    if null["real"] is not None:
        label = f"real market {number(null['real'], 2, sign=True)}"
        axis.axvline(null["real"], color=VERMILION, lw=2, label=label)
        axis.legend(frameon=False, fontsize=8.5)
