"""What is kept of each member of a sweep until the best one is known.

`members/<number>/` holds `metrics.jsonl`, `checkpoints/` with the last state and, once it has been
evaluated, `result.json`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.types import Networks, TrainState
from gm_jax.report.metrics import session_closes, session_returns, summarise
from gm_jax.report.significance import session_sharpe
from gm_jax.run import evaluation, results
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup


RESULT = "result.json"


def keep(own: RunDirectory, sweep: RunDirectory, setup: Setup, state: TrainState) -> None:
    """Evaluate a member, count it as a trial, and keep its state and figures.

    A member that broke down is told of and kept as such: the others go on.

    Args:
        own: directory of the member, which has its metrics.
        sweep: directory of the sweep.
        setup: of the member.
        state: at the end of its training.
    """
    splits: dict[str, dict[str, Any]] = {}
    failed = broke(own.history())
    if failed is None:
        networks = learner.chosen(state)
        try:
            splits = {name: figures(setup, networks, name) for name in results.REPORTED}
        except UserError as error:
            failed = str(error)
    if failed is not None:
        say(f"warning: member {own.path.name} broke down: {failed}")
    sharpes = {
        n: session_sharpe(splits[n]["returns"]) if n in splits else None for n in results.REPORTED
    }
    results.record_trial(sweep, setup, sharpes)
    shutil.rmtree(own.checkpoints, ignore_errors=True)  # of an earlier try that ended here
    with closing(Checkpoints(own.checkpoints)) as checkpoints:
        checkpoints.save(setup, state)
    score = float(state.best.score)
    own.write(
        RESULT,
        {
            "failed": failed,
            "selection_score": score if math.isfinite(score) and failed is None else None,
            "best_iteration": int(state.best.iteration),
            "data_sha256": setup.loaded.digest,
            "splits": splits,
        },
    )


def result(own: RunDirectory) -> dict[str, Any]:
    """Read what `keep` has written."""
    found: dict[str, Any] = json.loads((own.path / RESULT).read_text())
    return found


def broke(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Say where a member's training broke down, if it did.

    Args:
        history: rows of its metrics, where null stands for what was not finite.
    """
    for row in history:
        for name in ("reward", "actor_norm", "critic_norm"):
            values = row[name].values() if isinstance(row[name], dict) else [row[name]]
            if None in values:
                return f"{name} is not finite from iteration {row['iteration']} on"
    return None


def figures(setup: Setup, networks: Networks, name: str) -> dict[str, Any]:
    """Return what a member came to on one split, and its returns session by session."""
    ledger = evaluation.team_ledger(setup, networks, setup.split[name])
    closes = session_closes(ledger.start_equity, ledger.curve, ledger.session)
    return {
        **summarise(ledger, setup.settings.max_contracts, interval=True),
        "sessions": sorted({*ledger.session.tolist()}),
        "returns": session_returns(closes),
    }
