"""Contract changes: sessions of an untraded contract, and gaps where one contract follows another.

Files of continuous futures are spliced; the gap at a splice is nobody's profit or loss.
"""

from __future__ import annotations

import numpy as np

from gm_jax.market.calendar import roll_session


THIN = 0.05  # of the median session's mean volume per bar
EXPIRY_JUMP = 0.0025  # at the first bar of the Tuesday session of expiry week
SESSION_JUMP = 0.005  # between two bars of one session


def thin_sessions(session: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """Return whether each bar's session trades hardly at all, [T] bool.

    A session is thin if its mean volume per bar is under 5 % of the median session's. Such a
    stretch is another contract.

    Args:
        session: [T] i64, trade date as days since 1970.
        volume: [T] f64, contracts.
    """
    _, number, bars = np.unique(session, return_inverse=True, return_counts=True)
    mean = np.bincount(number, weights=volume) / bars
    return (mean < THIN * np.median(mean))[number]


def jumps(open_points: np.ndarray, close_points: np.ndarray) -> np.ndarray:
    """Return the jump from the last close to each open, [T] f64, log return, first 0."""
    jump = np.zeros(len(open_points))
    jump[1:] = np.log(open_points[1:] / close_points[:-1])
    return jump


def rolls(jump: np.ndarray, session: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Return whether the contract changed between t-1 and t, [T] bool.

    That is the first bar of the Tuesday session of expiry week if it jumps by more than 0.25 %,
    and any bar that jumps by more than 0.5 % inside a session. Across a hole inside a session the
    price may truly have moved that far: no roll is seen there.

    Args:
        jump: [T] f64, from the last close to the open, log return.
        session: [T] i64, trade date as days since 1970.
        hole: [T] bool, bars are missing between t-1 and t.
    """
    first = np.diff(session, prepend=session[:1]) != 0
    expiry = first & roll_session(session) & (np.abs(jump) > EXPIRY_JUMP)
    inside = ~first & ~hole & (np.abs(jump) > SESSION_JUMP)
    return expiry | inside
