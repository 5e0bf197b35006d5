"""Generated markets: worlds whose answer is known, on the exchange's clock, seeded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE, NEW_YORK, SESSION_MINUTES
from gm_jax.market.paths import TICK, streams
from gm_jax.market.worlds import MARKETS, Below, Recipe


FIRST_SESSION = "2000-01-03"  # trade date, a Monday; it opens on Sunday evening
MAX_SESSIONS = 65_000  # to the year 2249; ns since 1970 end in 2262
BAR_MINUTES = (5, 30)


@dataclass(frozen=True)
class World:
    """A generated market and what is known about it."""

    bars: Bars
    # [T] f64, P(favourable | bars ≤ t) − P(unfavourable | bars ≤ t) from the exact filter; None
    # where no rule on bars earns anything, or none is known
    belief: np.ndarray | None
    below: Below  # what the best policy does where belief is low, see `worlds.Below`
    flat_is_best: bool  # after costs no rule that sees bars alone earns anything
    state: np.ndarray | None  # [T] f64, the hidden truth that belief is about, by its sign
    market: str
    parameters: dict[str, float]  # all that took effect


def generate(
    market: str,
    *,
    bars: int,
    minutes: int,
    seed: int,
    parameters: Mapping[str, float] | None = None,
) -> World:
    """Generate a market, the same bars for the same arguments.

    A longer run of the same seed begins with the shorter one. Sessions are full and follow each
    other on every weekday, holidays included; there are no holes and no rolls.

    Args:
        market: a key of `MARKETS`.
        bars: T, at least 1; need not be whole sessions.
        minutes: length of a bar, 5 or 30.
        seed: 0 or more.
        parameters: the market's own, see `MARKETS`; defaults depend on `minutes`.

    Raises:
        UserError: an argument is unknown or out of range.
    """
    recipe = _recipe(market)
    if minutes not in BAR_MINUTES:
        raise UserError(f"minutes={minutes!r}: generated bars last 5 or 30 minutes.")
    effective = _effective(market, recipe, minutes, parameters or {})
    most = MAX_SESSIONS * (SESSION_MINUTES // minutes)
    bars, seed = _whole("bars", bars, 1, most), _whole("seed", seed, 0, 2**64 - 1)

    time, session = clock(bars, minutes)
    paths = recipe.process(session, minutes, streams(seed), **effective)
    return World(
        bars=Bars(
            time=time,
            open=paths.open,
            high=paths.high,
            low=paths.low,
            close=paths.close,
            volume=paths.volume,
            session=session,
            hole=np.zeros(bars, bool),
            roll=np.zeros(bars, bool),
            minutes=minutes,
            tick=TICK,
        ),
        belief=paths.belief,
        below=recipe.below,
        flat_is_best=recipe.flat_is_best,
        state=paths.state,
        market=market,
        parameters=effective,
    )


def describe(market: str) -> str:
    """Return what a market tests, its best policy and its parameters, a few lines of text.

    Raises:
        UserError: there is no such market.
    """
    recipe = _recipe(market)
    lines = [f"{market}: {recipe.tests} Best: {recipe.best}"]
    for name, p in recipe.parameters.items():
        usual = f"{p.default_at(5):g}"
        if p.default_at(30) != p.default_at(5):
            usual += f" ({p.default_at(30):g} at 30 minutes)"
        lines.append(f"  {name} = {usual}: {p.meaning}; {p.low:g} to {p.high:g}")
    return "\n".join(lines)


def clock(bars: int, minutes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return open times and trade dates of full weekday sessions, 18:00 to 17:00 New York.

    Args:
        bars: T.
        minutes: length of a bar; divides a session.

    Returns:
        time: [T] i64, ns since 1970 UTC.
        session: [T] i64, days since 1970.
    """
    per_session = SESSION_MINUTES // minutes
    days = np.busday_offset(np.datetime64(FIRST_SESSION), np.arange(-(-bars // per_session)))
    # A session opens six hours before its trade date. Clocks change on Sunday mornings, between
    # sessions: within one, local time and UTC run alike.
    eve = pd.DatetimeIndex(days.astype("datetime64[ns]")) - pd.Timedelta(hours=6)
    opens = eve.tz_localize(NEW_YORK).tz_convert("UTC").tz_localize(None)
    opens_ns = opens.to_numpy().astype("datetime64[ns]").astype(np.int64)
    time = opens_ns[:, None] + np.arange(per_session) * minutes * MINUTE
    session = np.repeat(days.astype(np.int64), per_session)
    return time.ravel()[:bars], session[:bars]


def _recipe(market: str) -> Recipe:
    if market not in MARKETS:
        known = ", ".join(MARKETS)
        raise UserError(f"There is no market {market!r}{_hint(market, MARKETS)}. Known: {known}.")
    return MARKETS[market]


def _effective(
    market: str, recipe: Recipe, minutes: int, given: Mapping[str, float]
) -> dict[str, float]:
    """Return every parameter of a market, the given ones checked."""
    values = {name: p.default_at(minutes) for name, p in recipe.parameters.items()}
    for name, value in given.items():
        if name not in values:
            raise UserError(
                f"Market {market!r} has no parameter {name!r}{_hint(name, values)}. "
                f"It has: {', '.join(values)}."
            )
        p = recipe.parameters[name]
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not (number and p.low <= value <= p.high):
            raise UserError(
                f"{name}={value!r} for market {market!r}: "
                f"expected a number from {p.low:g} to {p.high:g}, {p.meaning}."
            )
        values[name] = float(value)
    return values


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        number = int(value)
        if low <= number <= high:
            return number
    raise UserError(f"{name}={value!r}: expected a whole number from {low} to {high}.")


def _hint(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean {near[0]!r}" if near else ""
