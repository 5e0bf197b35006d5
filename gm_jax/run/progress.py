"""Live progress: a bar on a terminal or in a notebook, plain lines elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tqdm.auto import tqdm

from gm_jax.run import memory


_BLOCKS = "▁▂▃▄▅▆▇█"


def say(line: str) -> None:
    """Print one line for the person, apart from what a program reads."""
    print(line, file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    return "ipykernel" in sys.modules


class Progress:
    """Shows where a run stands after each interval.

    Args:
        done: iterations done.
        total: iterations planned.
        lines: write plain lines where no bar can be shown.
    """

    def __init__(self, done: int, total: int, lines: bool = True) -> None:
        shown = sys.stderr.isatty() or in_notebook()
        self._total, self._first, self._began = total, done, time.monotonic()
        self._score: float | None = None
        self._bar = tqdm(total=total, initial=done, unit="it") if shown else None
        self._lines = lines

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Show the newest row of metrics, and the newest validation score."""
        scores = [row["selection_score"] for row in rows if row["selection_score"] is not None]
        self._score = scores[-1] if scores else self._score
        row = rows[-1]
        text = _describe(row, self._score)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(row["iteration"] - self._bar.n)
            return
        if not self._lines:
            return
        done = row["iteration"]
        spent = time.monotonic() - self._began
        left = spent / max(done - self._first, 1) * (self._total - done)
        say(f"iteration {done}/{self._total}  {text}  left {clock(left)}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def _describe(row: dict[str, Any], score: float | None) -> str:
    reward = " ".join(f"{agent} {value:+.1f}" for agent, value in row["reward"].items())
    mean = {k: sum(row[k].values()) / len(row[k]) for k in ("actor_loss", "critic_loss", "entropy")}
    return "  ".join(
        [
            f"{row['env_steps_per_second']:,.0f} steps/s",
            f"reward {reward} bp",
            f"loss {mean['actor_loss']:+.4f}/{mean['critic_loss']:.3f}",
            f"entropy {mean['entropy']:.2f}",
            *([f"validation {score:+.2f}"] if score is not None else []),
            f"memory {row['memory_bytes'] / 2**20:,.0f} MiB",
        ]
    )


def clock(seconds: float) -> str:
    """Return minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def sparkline(values: list[float], width: int = 40) -> str:
    """Draw a series in one line of text."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((v - low) / span * (len(_BLOCKS) - 1))] for v in values)


def memory_bytes() -> int:
    """Return the device's bytes in use at the peak, on a CPU the process's peak resident size."""
    return memory.device()["peak"]
