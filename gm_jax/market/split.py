"""Training, validation and test, once or walking forward: at session borders, with embargo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.settings import Settings


MOST_FOLDS = 50


@dataclass(frozen=True)
class Split:
    """Half-open ranges of bars; nothing lies in two of them."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]

    def __getitem__(self, name: str) -> tuple[int, int]:
        """Return the range of `train`, `validation`, `test`, or from first to last: `all`."""
        if name == "all":
            return self.train[0], self.test[1]
        return getattr(self, name)


def split_bars(bars: Bars, settings: Settings, warmup: int) -> Split:
    """Cut the usable bars at session borders into training, validation and test.

    Between two parts `embargo_sessions` sessions are left out, and training loses its last
    `purge_bars` bars beside, so that no outcome reaches from one part into the next.

    Args:
        bars: the whole history.
        settings: `split`, `purge_bars`, `embargo_sessions`.
        warmup: first bar at which every feature is known.

    Raises:
        UserError: too few sessions for one in each part.
    """
    edges = _usable(bars, warmup)
    sessions, embargo = len(edges) - 1, settings.embargo_sessions
    usable = sessions - 2 * embargo
    if usable < 3:
        raise UserError(
            f"Found {sessions} sessions after {warmup} bars of warm-up, expected at least "
            f"{3 + 2 * embargo} (one each to train, validate and test, and the embargo between "
            "them); give a longer file or set embargo_sessions=0."
        )
    validation, test = (max(1, round(share * usable)) for share in settings.split[1:])
    test = min(test, usable - 2)
    train = max(1, usable - validation - test)
    return _cut(edges, settings, train, usable - train - test, test)


def folds(bars: Bars, settings: Settings, warmup: int, count: int) -> list[Split]:
    """Cut the usable bars into expanding folds for a walk forward, at session borders.

    The sessions make count + 1 equal blocks, the first taking what is left over. Fold k (from 1)
    is tested on block k + 1 and learns from everything before it, of which the last
    split[1] / (split[0] + split[1]) of the sessions validate. The embargo before a test is taken
    from what is learnt from: the tests follow each other without gap, to the end of the history.

    Args:
        bars: the whole history.
        settings: `split`, `purge_bars`, `embargo_sessions`.
        warmup: first bar at which every feature is known.
        count: K, folds, 2 to `MOST_FOLDS`.

    Raises:
        UserError: a count out of range, or too few sessions.

    Source: scikit-learn, TimeSeriesSplit.
    """
    if not 2 <= count <= MOST_FOLDS:
        raise UserError(f"Found {count} folds, expected a whole number from 2 to {MOST_FOLDS}.")
    edges = _usable(bars, warmup)
    sessions, embargo = len(edges) - 1, settings.embargo_sessions
    needed = (count + 1) * (2 + 2 * embargo)
    if sessions < needed:
        raise UserError(
            f"Found {sessions} sessions after {warmup} bars of warm-up, expected at least {needed} "
            f"for {count} folds ({2 + 2 * embargo} in each of {count + 1} blocks: one each to "
            "train and validate, and the embargoes); give a longer file, fewer folds or "
            "embargo_sessions=0."
        )
    share = settings.split[1] / (settings.split[0] + settings.split[1])
    test = sessions // (count + 1)
    found = []
    for first_test in range(sessions - count * test, sessions, test):
        learnt = first_test - 2 * embargo
        validation = min(max(1, round(share * learnt)), learnt - 1)
        found.append(_cut(edges, settings, learnt - validation, validation, test))
    return found


def _usable(bars: Bars, warmup: int) -> np.ndarray:
    """Return the borders of the sessions that have a bar after warm-up, [sessions + 1] i64."""
    edges = np.append(session_starts(bars), len(bars))
    return np.unique(np.maximum(edges, warmup))


def _cut(edges: np.ndarray, settings: Settings, train: int, validation: int, test: int) -> Split:
    """Lay out three parts of so many sessions from the first edge on, an embargo between them.

    Raises:
        UserError: the purge leaves nothing to train on.
    """
    first_validation = train + settings.embargo_sessions
    first_test = first_validation + validation + settings.embargo_sessions
    if edges[train] - settings.purge_bars <= edges[0]:
        raise UserError(
            f"Training has {edges[train] - edges[0]} bars, not more than purge_bars "
            f"{settings.purge_bars}; give a longer file or a smaller purge_bars."
        )
    return Split(
        train=(int(edges[0]), int(edges[train]) - settings.purge_bars),
        validation=(int(edges[first_validation]), int(edges[first_validation + validation])),
        test=(int(edges[first_test]), int(edges[first_test + test])),
    )


def session_starts(bars: Bars) -> np.ndarray:
    """Return the index of the first bar of each session."""
    return np.flatnonzero(np.diff(bars.session, prepend=bars.session[:1] - 1))


def clean_runs(bars: Bars, span: tuple[int, int]) -> np.ndarray:
    """Return [T] i64: for each bar, how many steps can follow inside the span without break.

    A hole or a roll between two bars breaks; outside the span the figure is −1.
    """
    steps = np.full(len(bars), -1, dtype=np.int64)
    first, end = span
    broken = (bars.hole | bars.roll)[first:end]
    index = np.arange(first, end)
    # the last bar before the next break, for each bar
    last = np.where(np.append(broken[1:], True), index, end)
    last = np.minimum.accumulate(last[::-1])[::-1]
    steps[first:end] = last - index
    return steps


def segments(bars: Bars, span: tuple[int, int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a span at session borders into at most `most` parallel segments of whole sessions.

    Returns:
        First bars and numbers of steps, [S] i32 each; a segment ends at its last session's close.
    """
    starts = session_starts(bars)
    starts = starts[(starts >= span[0]) & (starts < span[1])]
    starts = starts if len(starts) else np.array([span[0]])  # part of one session
    groups = np.array_split(starts, min(most, len(starts)))
    first = np.array([group[0] for group in groups])
    end = np.append(first[1:], span[1])
    return first.astype(np.int32), (end - first - 1).astype(np.int32)
