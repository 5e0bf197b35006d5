"""What all pictures share: canvas, palette, axes of time and money, and rows thinned to draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator


# told apart by colour-blind eyes, and in grey by their lightness: Okabe and Ito (2008)
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, INK, GREY = "#E69F00", "#56B4E9", "#111111", "#8A8A8A"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
LONG, SHORT = BLUE, VERMILION
SHADES = LinearSegmentedColormap.from_list(
    "shares", ["#FFFFFF", "#9CC9E3", BLUE, "#00304D"]
).with_extremes(bad="#EEEEEE")  # grey where there is nothing to share
SIDES = LinearSegmentedColormap.from_list("sides", ["#EFA57A", "#FFFFFF", "#7FB8DC"])
# of dates, from years to seconds: a day never without its month
FORMATS = ["%Y", "%b", "%d %b", "%H:%M", "%H:%M", "%S.%f"]
ZEROS = ["", "%Y", "%d %b", "%d %b", "%H:%M", "%H:%M"]
OFFSETS = ["", "%Y", "%Y", "%d %b %Y", "%d %b %Y", "%d %b %Y %H:%M"]


def canvas(width: float, height: float, title: str) -> Figure:
    """Return an empty figure with its title.

    Args:
        width: inches.
        height: inches.
        title: says what is shown.
    """
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


def style(axis: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> Axes:
    """Give an axis the look of all pictures, and its labels."""
    axis.set_title(title, loc="left", fontsize=10, color="#333333")
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.grid(alpha=0.25, lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, length=3)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def number(value: float, digits: int = 0, sign: bool = False) -> str:
    """Return a number with thousands separators and a true minus sign."""
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    zero = f"{0:.{digits}f}"
    return zero if text.lstrip("+-") == zero else text.replace("-", "−")


def plain(value: float, _: float = 0) -> str:
    """Return a tick's number with the digits it needs, never as a power of ten."""
    if abs(value) >= 1000:
        return number(value)
    text = f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.7f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def readable(name: str) -> str:
    """Return a name in words."""
    return name.replace("_", " ").lower()


def brief(name: str) -> str:
    """Return a name in words of at most six letters or four and a full stop."""
    return " ".join(w if len(w) <= 6 else f"{w[:4]}." for w in readable(name).split())


def in_usd(axis: Axes) -> None:
    """Write the vertical axis in whole dollars."""
    axis.yaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axis.yaxis.set_major_formatter(lambda value, _: number(value))


def in_percent(axis: Any, span: float) -> None:
    """Write an axis, `axes.xaxis` or `axes.yaxis`, of fractions in per cent; it shows `span`."""
    digits = 0 if span > 0.06 else 1 if span > 0.025 else 2
    axis.set_major_formatter(lambda value, _: f"{number(100 * value, digits)} %")


def in_time(*axes: Axes) -> None:
    """Write horizontal axes in dates; shared ones share the labels of the last."""
    for axis in axes:
        locator = AutoDateLocator(minticks=4, maxticks=9)
        axis.xaxis.set_major_locator(locator)
        concise = ConciseDateFormatter(
            locator, formats=FORMATS, zero_formats=ZEROS, offset_formats=OFFSETS
        )
        axis.xaxis.set_major_formatter(concise)
        axis.margins(x=0.01)
    axes[-1].set_xlabel("time, UTC", fontsize=9)


def dates(time: np.ndarray) -> np.ndarray:
    """Return times as matplotlib reads them.

    Args:
        time: [n] i64, ns UTC.
    """
    return np.asarray(time, dtype=np.int64).astype("datetime64[ns]")


def thinned(values: np.ndarray, most: int = 4_000) -> np.ndarray:
    """Return rows, ascending, whose line looks like that of all: extremes of every bin, both ends.

    Args:
        values: [n].
        most: rows about.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, most // 2 + 1).astype(np.int64)
    bins = list(pairwise(edges))
    lowest = [a + np.argmin(values[a:b]) for a, b in bins]
    highest = [a + np.argmax(values[a:b]) for a, b in bins]
    return np.unique(np.array([0, *lowest, *highest, count - 1]))


def binned(
    time: np.ndarray, values: np.ndarray, most: int = 800
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return bins' edges [m + 1] in ns UTC and the mean, least and greatest value [m] in each.

    Args:
        time: [n] i64, ns UTC.
        values: [n].
        most: bins; where the value changes less often, each bin is a stretch of one value.
    """
    count = len(values)
    first = np.flatnonzero(np.append(True, np.diff(values) != 0))
    if len(first) > most:
        first = np.linspace(0, count, most + 1).astype(np.int64)[:-1]
    width = np.median(np.diff(time)) if count > 1 else 300e9
    edges = np.append(time[first], time[-1] + np.int64(width))
    mean = np.add.reduceat(values.astype(np.float64), first) / np.diff(np.append(first, count))
    low, high = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
    return edges, mean, low, high


def say(axis: Axes, text: str) -> None:
    """Write in the middle of an empty axis why it is empty."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="#666666")
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])


def key(axis: Axes, title: str = "", handles: Sequence[Any] | None = None) -> None:
    """Put the legend right of an axis; of its own lines and patches unless told."""
    axis.legend(
        handles=axis.get_legend_handles_labels()[0] if handles is None else handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8.5,
        title_fontsize=8.5,
        alignment="left",
    )
