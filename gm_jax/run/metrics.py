"""Metrics of training: a plain row per iteration, all of them finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gm_jax.errors import NotFiniteError
from gm_jax.mappo.types import Metrics
from gm_jax.run.progress import memory_bytes
from gm_jax.run.setup import Setup


UNDEFINED = ("selection_score", "validation_sharpe")  # NaN where there was nothing to score


def metric_rows(
    setup: Setup, metrics: Metrics, done: int, count: int, seconds: float
) -> list[dict[str, Any]]:
    """Return the metrics of an interval as a plain row per iteration.

    Args:
        setup: of the run.
        metrics: [interval, ...] each, on the host.
        done: iterations before the interval.
        count: iterations of the interval.
        seconds: it took.
    """
    steps = setup.episode_length * setup.config.num_envs
    rows = []
    for i in range(count):
        values = jax.tree.map(lambda x, i=i: x[i], metrics)
        row: dict[str, Any] = {"iteration": done + i + 1, "env_steps": (done + i + 1) * steps}
        for name, value in sorted(values.items()):
            if isinstance(value, dict):
                row[name] = {k: float(v) for k, v in value.items()}
            elif np.ndim(value):
                row[name] = dict(zip(setup.system.agents, map(float, value), strict=True))
            else:
                number = float(value)
                row[name] = None if name in UNDEFINED and math.isnan(number) else number
        row |= {
            "episodes_per_minute": 60 * count / seconds,
            "env_steps_per_second": count * steps / seconds,
            "memory_bytes": memory_bytes(),
        }
        rows.append(row)
    return rows


def require_finite(rows: Sequence[Mapping[str, Any]], kept: str) -> None:
    """Refuse metrics that are not finite.

    Args:
        rows: of `metric_rows`.
        kept: which state the last good one is, and where.

    Raises:
        NotFiniteError: names the first number that is none, causes before effects.
    """
    for row in rows:
        for what, number, mend in _numbers(row):
            if not math.isfinite(number):
                raise NotFiniteError(
                    f"Iteration {row['iteration']}: {what} is {number}; {mend}. The last good "
                    f"state, {kept}."
                )


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Yield (what it is, number, what to do if it is none), causes before effects."""
    bars, rates = "look at the reward's weights and the bars", "try a smaller lr_actor or lr_critic"
    yield from ((f"the reward term {term}", x, bars) for term, x in row["terms"].items())
    yield from ((f"the reward of {agent}", x, bars) for agent, x in row["reward"].items())
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name} of {agent}", x, rates) for agent, x in value.items())
        elif value is not None:
            yield name, value, rates
