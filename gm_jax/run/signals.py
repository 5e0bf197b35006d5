"""Signals: SIGINT (Ctrl-C) and SIGTERM end a run alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Handle signals in a block, and as before afterwards."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not in the main thread, as under some notebooks: theirs stays
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt with the name of the signal."""
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextmanager
def first_is_a_wish(then: str = "saving") -> Iterator[Callable[[], bool]]:
    """Turn the first signal into a wish to end after the interval; the second ends at once.

    Args:
        then: what follows, for the person.

    Yields:
        Whether the wish was made.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            interrupt(number, frame)
        seen.append(number)
        name = signal.Signals(number).name
        line = f"{name}: {then} after this interval; once more stops at once.\n"
        os.write(2, line.encode())  # a signal may come in the middle of a print

    with handled(note, signal.SIGINT, signal.SIGTERM):
        yield lambda: bool(seen)
