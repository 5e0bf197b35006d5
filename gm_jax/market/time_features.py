"""Features of the time of day: known before the bar, the same in every market.

A session runs from 18:00 to 17:00 New York; a decision is taken at the close of a bar.
"""

from __future__ import annotations

from gm_jax.market.calendar import REGULAR, SESSION_MINUTES
from gm_jax.market.ops import Ops, Value
from gm_jax.market.registry import feature


@feature
def time_of_day(x: Ops) -> Value:
    """Position of the bar's close in the session: −1 at 18:00 to 1 at 17:00, then on."""
    return 2 * (x.minute + x.bar_minutes) / SESSION_MINUTES - 1


@feature
def minutes_to_break(x: Ops, within: int = SESSION_MINUTES) -> Value:
    """Minutes from the bar's close to 17:00 New York / {within}, at most 1: falls from 1 to 0."""
    left = SESSION_MINUTES - (x.minute + x.bar_minutes)
    return x.maximum(0.0, x.minimum(left / within, 1.0))


@feature
def regular_hours(x: Ops) -> Value:
    """1 if the bar opens from 09:30 to before 16:00 New York, else −1."""
    start, end = REGULAR
    return x.where((x.minute >= start) & (x.minute < end), 1.0, -1.0)
