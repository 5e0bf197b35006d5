"""Pictures of a team: what its agents do, together and by market, and what each adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gm_jax.report import figures
from gm_jax.report.backtest import Ledger
from gm_jax.report.figures import GREY, INK, PALETTE, number, style


WORTH = (  # key of a contribution, title, unit, digits
    ("net_pnl", "Net P&L", "USD", 0),
    ("sharpe_ratio", "Sharpe ratio", "Sharpe ratio", 2),
)
PALE = "(pale: the 95 % interval holds 0 or is not known)"


def action_use(
    ledger: Ledger,
    agents: Sequence[str],
    actions: Sequence[str],
    labels: np.ndarray,
    regimes: Sequence[str],
    title: str,
) -> Figure:
    """Draw how often each agent takes each action, overall and by regime.

    Args:
        ledger: of the team.
        agents: in the order of the actions' columns.
        actions: names by id.
        labels: [n] regime of each bar, an index into `regimes`.
        regimes: names.
        title: of the figure.
    """
    figure = figures.canvas(1.6 + 0.62 * len(agents) * len(actions), 4.4, title)
    axes = figure.subplots(1, len(agents), squeeze=False)[0]
    labels = np.asarray(labels)
    groups = [np.ones(len(labels), dtype=bool)] + [labels == i for i in range(len(regimes))]
    names = ["all bars", *map(figures.readable, regimes)]
    names = [
        f"{name} ({number(100 * rows.mean())} %)" if i and len(rows) else name
        for i, (name, rows) in enumerate(zip(names, groups, strict=True))
    ]
    for agent, (axis, name) in enumerate(zip(axes, agents, strict=True)):
        chosen = ledger.actions[:, agent]
        shares = np.stack([_shares(chosen[rows], len(actions)) for rows in groups])
        style(axis, figures.readable(name), "action, % of the row's bars")
        _heat(axis, shares, names if agent == 0 else [], actions, 100)
        axis.axhline(0.5, color="white", lw=4)
    axes[0].set_ylabel("regime (share of bars)", fontsize=9)
    return figure


def _shares(ids: np.ndarray, count: int) -> np.ndarray:
    """Return the share of each id, [count] %; NaN where there are none."""
    if not len(ids):
        return np.full(count, np.nan)
    return 100 * np.bincount(ids, minlength=count) / len(ids)


def _heat(
    axis: Axes, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], most: float
) -> None:
    """Draw shares [R, K] in per cent, each with its number."""
    axis.imshow(shares, cmap=figures.SHADES, vmin=0, vmax=most, aspect="auto")
    for i, j in np.ndindex(*shares.shape):
        share = shares[i, j]
        text = "–" if np.isnan(share) else "·" if share == 0 else "<1" if share < 0.5 else None
        color = "white" if share > 0.55 * most else GREY if text else INK
        text = text or number(float(share))
        axis.text(j, i, text, ha="center", va="center", fontsize=8.5, color=color)
    names = [figures.brief(name) for name in columns]
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def coordination(
    ledger: Ledger,
    agents: Sequence[str],
    actions: Sequence[str],
    contributions: Mapping[str, Mapping[str, Any]] | None,
    title: str,
) -> Figure:
    """Draw which actions meet, for each pair of agents, and what each agent is worth.

    Args:
        ledger: of the team.
        agents: in the order of the actions' columns.
        actions: names by id.
        contributions: see `attribution.contributions`.
        title: of the figure.
    """
    figure = figures.canvas(14, 8.2, title)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.25, 1])[:, 0]
    pairs = list(combinations(range(len(agents)), 2))
    count = len(actions)
    for axis, (a, b) in zip(above.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        both = _shares(ledger.actions[:, a] * count + ledger.actions[:, b], count**2)
        joint = both.reshape(count, count)
        first, second = figures.readable(agents[a]), figures.readable(agents[b])
        shared = number(shared_information(joint / 100), 2)
        style(
            axis,
            f"{first} × {second}\n{shared} bit in common (0: independent)",
            f"{second}, % of bars",
            first,
        )
        _heat(axis, joint, [figures.brief(n) for n in actions], actions, joint.max())
    found = {agent: (contributions or {}).get(agent, {}).get("neutral", {}) for agent in agents}
    for axis, (key, name, unit, digits) in zip(below.subplots(1, 2), WORTH, strict=True):
        style(
            axis,
            f"{name}: the team's minus that with the agent's neutral\n{PALE}",
            unit,
            "agent",
        )
        _draw_worth(axis, found, key, digits)
    return figure


def shared_information(joint: np.ndarray) -> float:
    """Return how much two decisions tell of each other, bits; 0 where they are independent.

    Args:
        joint: [K, K] share of each pair of actions.
    """
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / apart[seen])).sum())


def _draw_worth(axis: Axes, found: Mapping[str, Mapping[str, Any]], key: str, digits: int) -> None:
    """Draw a bar per agent with its interval, pale where that holds 0 or is not known."""
    known = {agent: x for agent, x in found.items() if x.get(key) is not None}
    if not known:
        figures.say(axis, "too few sessions" if any(found.values()) else "not measured")
        return
    texts: list[str] = []
    for i, (agent, x) in enumerate(known.items()):
        value, bounds = x[key], x.get(f"{key}_ci95")
        clear = bounds is not None and bounds[0] * bounds[1] > 0
        axis.barh(i, value, height=0.55, color=PALETTE[i], alpha=0.9 if clear else 0.35)
        texts.append(f"{figures.readable(agent)}\n{number(value, digits, sign=True)}")
        if bounds is not None:
            axis.plot(bounds, [i, i], color=INK, lw=1.3, marker="|", ms=9)
            low, high = (number(bound, digits, sign=True) for bound in bounds)
            texts[-1] += f"\n({low} to {high})"
    axis.axvline(0, color=INK, lw=0.8)
    axis.set_yticks(range(len(known)), texts)
    axis.set_ylim(len(known) - 0.4, -0.6)
    axis.margins(x=0.1)
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_formatter(figures.plain)
