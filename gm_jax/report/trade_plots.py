"""Pictures of trading: when the account held what, and where the money went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gm_jax.report import figures
from gm_jax.report.backtest import Ledger
from gm_jax.report.figures import (
    BLUE,
    GREY,
    INK,
    LONG,
    ORANGE,
    SHORT,
    SKY,
    VERMILION,
    dates,
    number,
    style,
)


MOST_MARKERS = 300  # trades that can still be told apart
COSTS = {"commission": SKY, "spread": ORANGE, "impact": VERMILION}


def price_and_position(ledger: Ledger, close: np.ndarray, title: str, most: int) -> Figure:
    """Draw the price, shaded by the position and with trades while they can be told apart.

    Args:
        ledger: of the team.
        close: [n] close of each of its bars, points.
        title: of the figure.
        most: contracts, the largest position.
    """
    figure = figures.canvas(12, 6.6, title)
    price, position = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    change = np.diff(ledger.position, prepend=0)
    style(price, f"Price, shaded by position; {_count(change)}", ylabel="close, points")
    rows = figures.thinned(close)
    price.plot(
        dates(ledger.time)[rows],
        close[rows],
        color=INK,
        lw=0.9,
        marker="o" if len(rows) == 1 else "",
        label="close",
    )
    edges, mean, low, high = figures.binned(ledger.time, ledger.position)
    held = (
        "Position" if (low == high).all() else "Position: mean and, pale, range of short stretches"
    )
    style(position, f"{held}; at most {most:,} allowed", ylabel="contracts")
    bottom, top = close.min(), close.max()
    pad = 0.06 * (top - bottom) or 1.0
    bounds = [bottom - pad, top + pad]
    shade = np.ma.masked_equal(mean[None], 0)
    price.pcolormesh(
        dates(edges), bounds, shade, cmap=figures.SIDES, vmin=-most, vmax=most, zorder=0
    )
    price.set_ylim(bounds)
    digits = 0 if top - bottom > 10 else 2
    price.yaxis.set_major_formatter(lambda value, _: number(value, digits))
    _mark_trades(price, ledger, close, change)
    _draw_position(position, edges, mean, low, high)
    position.set_ylim(-1.08 * most if low.min() < 0 else 0, 1.08 * most)
    position.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figures.in_time(price, position)
    return figure


def _count(change: np.ndarray) -> str:
    trades = np.count_nonzero(change)
    hidden = ", too many to mark each" if trades >= MOST_MARKERS else ""
    return f"{trades:,} changes of position{hidden}"


def _mark_trades(axis: Axes, ledger: Ledger, close: np.ndarray, change: np.ndarray) -> None:
    handles: list[Any] = list(axis.lines)
    handles += [
        Patch(color=figures.SIDES(1.0), label="long"),
        Patch(color=figures.SIDES(0.0), label="short"),
    ]
    if 0 < np.count_nonzero(change) < MOST_MARKERS:
        sides = (("bought", change > 0, "^", LONG), ("sold", change < 0, "v", SHORT))
        for name, which, marker, color in sides:
            x, y = dates(ledger.time)[which], close[which]
            look: dict[str, Any] = {"ls": "", "ms": 5.5, "mec": "white", "mew": 0.5, "zorder": 4}
            handles += axis.plot(x, y, marker, color=color, label=name, **look)
    figures.key(axis, handles=handles)


def _draw_position(
    axis: Axes, edges: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    time = dates(edges)
    ends = [np.append(x, x[-1]) for x in (mean, low, high)]
    for color, clip in ((LONG, np.maximum), (SHORT, np.minimum)):
        average, least, greatest = (clip(x, 0) for x in ends)
        look: dict[str, Any] = {"step": "post", "color": color, "lw": 0}
        axis.fill_between(time, least, greatest, alpha=0.25, **look)
        axis.fill_between(time, average, alpha=0.75, **look)
    axis.axhline(0, color=INK, lw=0.8)


def cost_breakdown(ledger: Ledger, title: str) -> Figure:
    """Draw how gross P&L becomes net, and when the costs were paid.

    Args:
        ledger: of the team.
        title: of the figure.
    """
    figure = figures.canvas(12, 4.8, title)
    bridge, over_time = figure.subplots(1, 2, width_ratios=[1.15, 1])
    paid = {name: getattr(ledger, name).sum() / 100 for name in COSTS}
    gross, cost = ledger.gross.sum() / 100, sum(paid.values())
    share = f", {number(100 * cost / gross)} % of gross" if gross > 0 else ""
    style(bridge, f"Costs {number(cost)} USD{share}", xlabel="from gross to net P&L", ylabel="USD")
    _draw_bridge(bridge, gross, paid, ledger.roll_cost.sum() / 100)
    style(over_time, "Costs paid so far", ylabel="costs, USD")
    growing = [np.cumsum(np.append(0, getattr(ledger, name))) / 100 for name in COSTS]
    rows = figures.thinned(growing[0])
    time = dates(np.append(ledger.time, ledger.time[-1])[rows])
    looks = {"colors": list(COSTS.values()), "labels": list(COSTS), "lw": 0, "alpha": 0.85}
    over_time.stackplot(time, *(values[rows] for values in growing), **looks)
    over_time.set_ylim(0, 1.05 * max(cost, 1))
    over_time.legend(loc="upper left", frameon=False, fontsize=8.5, reverse=True)
    figures.in_usd(over_time)
    figures.in_time(over_time)
    return figure


def _draw_bridge(axis: Axes, gross: float, paid: Mapping[str, float], rolls: float) -> None:
    """Draw gross P&L, the steps down to net and, hatched, the part of the costs due to rolls."""
    left = gross - np.cumsum([0.0, *paid.values()])
    net = float(left[-1])
    steps = [("gross", 0.0, gross, INK)]
    steps += [(n, left[i], -x, COSTS[n]) for i, (n, x) in enumerate(paid.items())]
    steps.append(("net", 0.0, net, BLUE if net >= 0 else VERMILION))
    for i, (_, bottom, height, color) in enumerate(steps):
        axis.bar(i, height, bottom=bottom, color=color, width=0.65)
        _tag(axis, i, max(bottom, bottom + height), height)
    for i, level in enumerate(left):
        axis.plot([i + 0.325, i + 0.675], [level, level], color=GREY, lw=0.8)
    names = [name for name, *_ in steps]
    if rolls:
        axis.bar(
            len(steps), -rolls, bottom=net + rolls, fc="none", ec=GREY, hatch="////", width=0.65
        )
        _tag(axis, len(steps), net + rolls, -rolls)
        names.append("(of which\nrolls)")
    axis.set_xticks(range(len(names)), names)
    axis.axhline(0, color=INK, lw=0.8)
    low, high = min(0, *left), max(0, *left, 1)
    pad = 0.12 * (high - low)
    axis.set_ylim(low - pad if low < 0 else 0, high + pad)
    axis.grid(axis="x", visible=False)
    figures.in_usd(axis)


def _tag(axis: Axes, x: int, top: float, value: float) -> None:
    axis.annotate(
        number(value, sign=True),
        (x, top),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
    )
