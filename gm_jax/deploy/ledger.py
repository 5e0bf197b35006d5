"""The ledger: a CSV row per bar, the same from a backtest and from a deployed model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gm_jax.market.data_report import iso


COLUMNS = ("target_position", "position", "equity")


def header(agents: Sequence[str]) -> list[str]:
    """Return the names of the columns: time, an action id per agent, the account."""
    return ["time", *agents, *COLUMNS]


def row(
    time: int, actions: Sequence[int] | np.ndarray, target: int, position: int, equity: int
) -> list[str]:
    """Return the account at a bar's close and the decisions taken then.

    Args:
        time: ns UTC, open of the bar.
        actions: [A] ids.
        target: contracts, the position that the order aims at.
        position: contracts.
        equity: cents.
    """
    account = (str(target), str(position), f"{equity / 100:.2f}")
    return [iso(time), *map(str, actions), *account]
