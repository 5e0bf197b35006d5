"""Short bars -> longer bars: exact aggregates on the exchange's clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE, holes, trading_minutes
from gm_jax.market.rolls import jumps, rolls


@dataclass(frozen=True)
class Inexact:
    """What keeps longer bars from being exact."""

    partial: int  # bars made without some of their source bars: at a hole or an end of the file
    past_roll: int  # source bars left out, since the contract changed before them inside a bar
    rolls: int  # contract changes that these bars, written and read again, show wrongly

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what is worth saying."""
        found = {
            "bars lack some of their source bars: holes, or an end of the file": self.partial,
            "source bars left out, since the contract changed inside their bar": self.past_roll,
            "contract changes will be missed, or seen where none was, in the file": self.rolls,
        }
        return tuple(f"{count:,} {what}" for what, count in found.items() if count)


def resample(bars: Bars, minutes: int) -> tuple[Bars, Inexact]:
    """Aggregate bars: first open, highest high, lowest low, last close, sum of volume.

    A bar is labelled by its open time and holds what opens from there up to the next label; labels
    count from 18:00 New York. Half days and the 16:15-16:30 halt before 2021-06-28 make shorter
    bars. A bar that lacks source bars is made of those that are there, and counted; one that lacks
    all of them is a hole. No bar mixes two contracts: one inside which the contract changes ends
    with the old contract, the rest is left out and counted, and the change stands before the next
    bar, so that its gap is nobody's profit or loss.

    Args:
        bars: T bars.
        minutes: length of the longer bars, a multiple of `bars.minutes` that divides an hour.

    Raises:
        UserError: `minutes` is no such multiple.
    """
    if minutes < 1 or minutes % bars.minutes or 60 % minutes:
        fit = [str(n) for n in range(bars.minutes, 61, bars.minutes) if 60 % n == 0]
        raise UserError(
            f"{bars.minutes}-minute bars cannot be resampled to {minutes} minutes; expected a "
            f"multiple that divides an hour: {', '.join(fit)}."
        )
    # 18:00 New York is a full hour of UTC in any season, and labels divide hours.
    label = bars.time - bars.time % (minutes * MINUTE)
    opens = np.diff(label, prepend=label[0] - 1) != 0
    past_roll = _past_roll(bars.roll, opens)
    first, kept = np.flatnonzero(opens), ~past_roll
    groups = np.flatnonzero(opens[kept])  # the first of a bar is always kept

    time, session, open_ = label[first], bars.session[first], bars.open[first]
    close = bars.close[kept][np.append(groups[1:], kept.sum()) - 1]
    roll = bars.roll[first] | np.append(False, past_roll[first[1:] - 1])
    hole = holes(time, minutes)
    # The calendar does not know of a thin holiday left out, nor of a market around the clock.
    unforeseen = bars.hole & ~holes(bars.time, bars.minutes)
    hole |= unforeseen[first] & (np.diff(time, prepend=time[0]) > minutes * MINUTE)

    longer = Bars(
        time=time,
        open=open_,
        high=np.maximum.reduceat(bars.high[kept], groups),
        low=np.minimum.reduceat(bars.low[kept], groups),
        close=close,
        volume=np.add.reduceat(bars.volume[kept], groups),
        session=session,
        hole=hole,
        roll=roll,
        minutes=minutes,
        tick=bars.tick,
    )
    found_again = rolls(jumps(open_, close), session, hole)
    return longer, Inexact(
        partial=int(_partial(bars, label, opens, minutes).sum()),
        past_roll=int(past_roll.sum()),
        rolls=int((found_again != roll).sum()),
    )


def _past_roll(roll: np.ndarray, opens: np.ndarray) -> np.ndarray:
    """Return whether a contract change lies between the open of the longer bar and t, [T] bool."""
    changes = np.cumsum(roll & ~opens)
    return changes > changes[opens][np.cumsum(opens) - 1]


def _partial(bars: Bars, label: np.ndarray, opens: np.ndarray, minutes: int) -> np.ndarray:
    """Return whether a hole or an end of the file takes something from each longer bar, [N] bool.

    Args:
        bars: T source bars.
        label: [T] i64, ns, open time of the longer bar of each.
        opens: [T] bool, it is the first of its longer bar.
        minutes: length of the longer bars.
    """
    first = np.flatnonzero(opens)
    end = np.append(first[1:], len(bars))
    last = end - 1
    lacking = (end - first) * bars.minutes < trading_minutes(label[first], minutes)
    late = bars.time[first] > label[first]
    early = bars.time[last] + bars.minutes * MINUTE < label[last] + minutes * MINUTE
    hole_before, hole_after = bars.hole[first], np.append(bars.hole[first[1:]], True)
    hole_before[0] = True  # the file's ends are holes: nobody knows what stood beyond
    inside = np.logical_or.reduceat(bars.hole & ~opens, first)
    return lacking & (inside | (late & hole_before) | (early & hole_after))
