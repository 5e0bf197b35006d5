"""Runs whose end takes little: for tests that do not look at all of it."""

from __future__ import annotations

from collections.abc import Callable

from gm_jax.run import evaluate, evaluation, pictures, results, training, walk_forward


def report_of_the_team_alone(set_attribute: Callable[..., None], drawn: bool = False) -> None:
    """Let runs report without oracle and contributions, export nothing and, mostly, draw nothing.

    Args:
        set_attribute: `setattr`, or that of a monkeypatch.
        drawn: pictures are drawn all the same.
    """
    set_attribute(training, "_export", lambda run: None)
    set_attribute(evaluation, "contributions", lambda *_: {})
    for module in (results, evaluate, walk_forward):
        set_attribute(module, "fit_oracle", lambda setup: None)
    if not drawn:
        for name in ("draw", "draw_returns"):
            set_attribute(pictures, name, lambda *_: None)
