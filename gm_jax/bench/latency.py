"""How long an exported model takes from a bar to its order."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gm_jax.bench import decisions
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.market.writing import write_csv
from gm_jax.run.directory import RunDirectory
from gm_jax.run.record import model_config
from gm_jax.run.setup import Setup
from gm_jax.run.source import Source


DECISIONS = 5_000
PERCENTILES = (50, 99)


def decision_latency(setup: Setup) -> dict[str, float]:
    """Export untrained networks and time their decisions, one thread, in a process of its own.

    Args:
        setup: whose team, sizes and bars.

    Returns:
        `decision_p50_ms` and `decision_p99_ms`.

    Raises:
        UserError: no PyTorch.
    """
    package.require_torch()
    # even odds: networks that lean to their neutral would hold, and fill no order
    even = replace(setup.config, initial_neutral=1 / len(setup.system.actions))
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, even)
    with tempfile.TemporaryDirectory() as folder:
        directory, bars = RunDirectory(Path(folder)), Path(folder) / "bars.csv"
        directory.write(package.NEEDED, model_config(setup, Source(market="planted")))
        package.export(directory, setup, state)
        write_csv(setup.loaded.bars, bars)
        count = min(DECISIONS, len(setup.loaded.bars) - setup.warmup - 1)
        done = subprocess.run(
            [sys.executable, str(decisions.__file__), folder, str(bars), str(count)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return percentiles(json.loads(done.stdout))


def percentiles(taken: Any) -> dict[str, float]:
    """Return the percentiles of times, by name."""
    return {f"decision_p{p}_ms": float(np.percentile(taken, p)) for p in PERCENTILES}
