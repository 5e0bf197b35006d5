"""Every verb of the strategic agents against a table written by hand: orders, controls, masks.

NQ: a tick is 500 cents, commission 225 cents, half the spread 250 cents a tick; lots 1 / 2, maximum
5. A contract is worth $300,000 and the account $1,000,000, 3⅓ contracts. The impact coefficient is
½ tick, hence 125 · q√q cents, rounded up.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account, core, strategic
from gm_jax.env.types import DRAWDOWN, HOLE, REGULAR, SESSION_START
from gm_jax.systems import STRATEGIC
from tests.env import replay, worlds
from tests.env.replay import (
    BEAR_TREND,
    BULL_TREND,
    CONSOLIDATION,
    CRISIS,
    UNKNOWN,
    VOLATILE,
)
from tests.env.worlds import NORMAL as QUIET
from tests.env.worlds import PRICE, by_hand


EQUITY = 100_000_000  # cents
# HOLD, BUY_CONSERVATIVE, BUY_AGGRESSIVE, SELL_CONSERVATIVE, SELL_AGGRESSIVE, REDUCE, INCREASE
VERBS = "HbBsSri"
# the detector's: keep, Normal, bUll, bear (Down), Crisis, Volatile, cOnsolidation
STANCES = "HNUDCVO"
LETTERS = (VERBS, VERBS, STANCES)
NORM, BULL, BEAR, CRIS, VOLA, CONS = (
    *(replay.NORMAL, BULL_TREND, BEAR_TREND),
    *(CRISIS, VOLATILE, CONSOLIDATION),
)
# commission, half the spread and impact by contracts
COSTS = {
    0: (0, 0, 0),
    1: (225, 250, 125),
    2: (450, 500, 354),
    3: (675, 750, 650),
    4: (900, 1_000, 1_000),
    5: (1_125, 1_250, 1_398),
    6: (1_350, 1_500, 1_838),
}


def params(**changes):
    settings = STRATEGIC.settings.replace(**({"random_start": False} | changes))
    return worlds.params_of(settings)


def state(env_params, position, desired, share, stance, cap, **changes):
    controls = strategic.Controls(*map(jnp.int32, (desired, share, stance, cap)))
    fresh = core.start(jnp.int32(0), env_params, strategic)
    given = {"position": position, **changes}
    given = {k: jnp.asarray(v, getattr(fresh, k).dtype) for k, v in given.items()}
    return fresh.replace(controls=controls, **given)


@jax.jit
def _step(env_state, actions, world, env_params):
    seen = core.observe(env_state, world, env_params, strategic)
    return seen, *core.step(env_state, actions, world, env_params, strategic)


def step(env_state, verbs, world, env_params):
    """Play one step by letters; return (observation, state, outcome) on the host."""
    actions = jnp.array([known.index(v) for known, v in zip(LETTERS, verbs, strict=True)])
    return jax.device_get(_step(env_state, actions, world, env_params))


def by_letters(mask):
    rows = zip(LETTERS, mask, strict=True)
    return " ".join("".join(v for v, legal in zip(*row, strict=True) if legal) for row in rows)


def world_of(sigma=0.12, opens=False, mandate=(-1.0, 1.0)):
    """Return a bar that gaps 8 ticks up and gains 4, after one that may open the session."""
    world = by_hand((8, 12, 8, 12, QUIET), mandate=[mandate] * worlds.BARS)
    bars = world.bars.at[0, 5].set(QUIET | SESSION_START * opens)
    return world.replace(bars=bars, signals=world.signals.at[:, 0].set(sigma))


def controls_of(env_state):
    c = env_state.controls
    return int(c.desired), int(c.share), int(c.stance), int(c.cap)


# By share of volatility, 5 to 25 %, a fresh cap is
# at σ = 0.12:  1.39 → 1, 2.78 → 2, 4.17 → 4, 5.56 → 5, 6.94 → 5
# at σ = 0.24:  0.69 → 0, 1.39 → 1, 2.08 → 2, 2.78 → 2, 3.47 → 3
LONG, SHORT = {}, {"allow_short": True}
CAP_2, CAP_0 = {"max_leverage": 0.75}, {"max_leverage": 0.25}  # 2.5 and 0.8 contracts
CAP_2_SHORT = CAP_2 | SHORT
USUAL, WILD, STILL = {}, {"sigma": 0.24}, {"sigma": 0.0}
OPENS, OPENS_WILD = {"opens": True}, {"opens": True, "sigma": 0.24}
HALTED, CLOSING, CLOSED = {"halted": True}, {"closing": True}, {"closed": DRAWDOWN}
POOR = dict.fromkeys(("equity", "peak", "session_equity"), EQUITY // 2)
ANY, DETECTS = "HbBsSri", "HUDCVO"

# settings, world, account, start (p, D, share, stance, C) | legal verbs by agent | then rows of:
# decisions -> contracts at the open, D, share, stance, C
TABLE = [
    # a fresh account: its first decision computes the cap
    (LONG, USUAL, {}, (0, 0, 1, NORM, UNKNOWN), f"HbB {ANY} {DETECTS}", [
        ("HHH", 0, 0, 1, NORM, 2),
        ("bHH", 1, 1, 1, NORM, 2),
        ("BHH", 2, 2, 1, NORM, 2),
        ("BbH", 2, 2, 2, NORM, 4),
        ("BBH", 2, 2, 3, NORM, 5),
        ("BiH", 2, 2, 4, NORM, 5),
        ("BsH", 1, 1, 0, NORM, 1),
        ("BSH", 1, 1, 0, NORM, 1),
        ("BrH", 1, 1, 0, NORM, 1),
        ("BHU", 2, 2, 1, BULL, 2),
        ("BHD", 0, 0, 1, BEAR, 2),
        ("BHC", 0, 0, 1, CRIS, 2),
        ("BHV", 1, 1, 1, VOLA, 2),
        ("BHO", 2, 2, 1, CONS, 2),
        ("BiC", 1, 1, 4, CRIS, 5),
        ("BiV", 2, 2, 4, VOLA, 5),
        # illegal: HOLD by another name
        ("sHH", 0, 0, 1, NORM, 2),
        ("rHH", 0, 0, 1, NORM, 2),
        ("iHN", 0, 0, 1, NORM, 2),
    ]),
    (LONG, STILL, {}, (0, 0, 1, NORM, UNKNOWN), f"HbB {ANY} {DETECTS}", [
        ("HHH", 0, 0, 1, NORM, 5),
        ("BHH", 2, 2, 1, NORM, 5),
    ]),
    (LONG, USUAL, POOR, (0, 0, 1, NORM, UNKNOWN), f"HbB {ANY} {DETECTS}", [
        ("BHH", 1, 1, 1, NORM, 1),
        ("BsH", 0, 0, 0, NORM, 0),
        ("BbH", 2, 2, 2, NORM, 2),
        ("BiH", 2, 2, 4, NORM, 3),
    ]),
    # a cap that once was computed stands until the share changes
    (LONG, USUAL, {}, (2, 2, 2, NORM, 3), f"{ANY} {ANY} {DETECTS}", [
        ("HHH", 0, 2, 2, NORM, 3),
        ("bHH", 1, 3, 2, NORM, 3),
        ("BHH", 1, 3, 2, NORM, 3),
        ("sHH", -1, 1, 2, NORM, 3),
        ("SHH", -2, 0, 2, NORM, 3),
        ("rHH", -1, 1, 2, NORM, 3),
        ("iHH", 1, 3, 2, NORM, 3),
        ("BbH", 2, 4, 3, NORM, 5),
        ("BBH", 2, 4, 4, NORM, 5),
        ("BiH", 2, 4, 4, NORM, 5),
        ("BsH", 0, 2, 1, NORM, 2),
        ("HsH", 0, 2, 1, NORM, 2),
        ("HSH", -1, 1, 0, NORM, 1),
        ("HrH", -1, 1, 0, NORM, 1),
        ("HHC", -2, 0, 2, CRIS, 3),
        ("HHV", -1, 1, 2, VOLA, 3),
        ("HHD", 0, 2, 2, BEAR, 3),
        ("iHD", 0, 2, 2, BEAR, 3),
        ("sHD", -1, 1, 2, BEAR, 3),
        ("sHU", -1, 1, 2, BULL, 3),
        ("iHU", 1, 3, 2, BULL, 3),
        ("iHO", 1, 3, 2, CONS, 3),
        ("HHN", 0, 2, 2, NORM, 3),
    ]),
    # or the session is new
    (LONG, OPENS, {}, (2, 2, 2, NORM, 3), f"{ANY} {ANY} {DETECTS}", [
        ("HHH", 0, 2, 2, NORM, 4),
        ("BHH", 2, 4, 2, NORM, 4),
        ("BsH", 0, 2, 1, NORM, 2),
    ]),
    (LONG, WILD, {}, (4, 4, 2, NORM, 4), f"HsSr {ANY} {DETECTS}", [
        ("HHH", 0, 4, 2, NORM, 4),
        ("sHH", -1, 3, 2, NORM, 4),
        ("iHH", 0, 4, 2, NORM, 4),
        # more volatility budgeted, less admitted: σ has doubled since
        ("HbH", -2, 2, 3, NORM, 2),
        ("HiH", -1, 3, 4, NORM, 3),
        ("HrH", -4, 0, 0, NORM, 0),
    ]),
    # D − 1 is cut to the largest cap, 3, whatever the others do: SELL_CONSERVATIVE is illegal
    (LONG, OPENS_WILD, {}, (4, 4, 2, NORM, 4), f"HSr {ANY} {DETECTS}", [
        ("HHH", -2, 2, 2, NORM, 2),
        ("sHH", -2, 2, 2, NORM, 2),
        ("SHH", -2, 2, 2, NORM, 2),
        ("HiH", -1, 3, 4, NORM, 3),
        ("SiH", -2, 2, 4, NORM, 3),
        ("rbH", -2, 2, 3, NORM, 2),
        ("HHV", -3, 1, 2, VOLA, 2),
    ]),
    # the ends of the share
    (LONG, USUAL, {}, (1, 1, 0, NORM, 1), f"{ANY} HbBi {DETECTS}", [
        ("HHH", 0, 1, 0, NORM, 1),
        ("bHH", 0, 1, 0, NORM, 1),
        ("bbH", 1, 2, 1, NORM, 2),
        ("iBH", 1, 2, 2, NORM, 4),
        ("BiH", 2, 3, 4, NORM, 5),
        ("rHH", -1, 0, 0, NORM, 1),
        ("SHH", -1, 0, 0, NORM, 1),
        ("HsH", 0, 1, 0, NORM, 1),
        ("HrH", 0, 1, 0, NORM, 1),
    ]),
    (LONG, USUAL, {}, (5, 5, 3, NORM, 5), f"HsSr {ANY} {DETECTS}", [
        ("HbH", 0, 5, 4, NORM, 5),
        ("HBH", 0, 5, 4, NORM, 5),
        ("HsH", -1, 4, 2, NORM, 4),
        ("HSH", -3, 2, 1, NORM, 2),
    ]),
    (LONG, USUAL, {}, (5, 5, 4, NORM, 5), f"HsSr HsSr {DETECTS}", [
        ("iiH", 0, 5, 4, NORM, 5),
        ("HsH", 0, 5, 3, NORM, 5),
        ("HSH", -1, 4, 2, NORM, 4),
        ("HrH", -4, 1, 0, NORM, 1),
        ("sHH", -1, 4, 4, NORM, 5),
        ("SHH", -2, 3, 4, NORM, 5),
        ("rHH", -3, 2, 4, NORM, 5),
        ("HHC", -4, 1, 4, CRIS, 5),
        ("HHV", -3, 2, 4, VOLA, 5),
        ("rSV", -3, 2, 2, VOLA, 4),
    ]),
    # halves are rounded towards flat
    (LONG, USUAL, {}, (3, 3, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("rHH", -2, 1, 2, NORM, 4),
        ("iHH", 1, 4, 2, NORM, 4),
    ]),
    (LONG, USUAL, {}, (4, 4, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("rHH", -2, 2, 2, NORM, 4),
        ("iHH", 0, 4, 2, NORM, 4),
        ("ibH", 1, 5, 3, NORM, 5),
    ]),
    (LONG, USUAL, {}, (1, 1, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("rHH", -1, 0, 2, NORM, 4),
        ("iHH", 1, 2, 2, NORM, 4),
    ]),
    # a stance stays until another is taken; each step cuts D anew
    (LONG, USUAL, {}, (1, 1, 4, CRIS, 5), f"{ANY} HsSr HNUDVO", [
        ("HHH", 0, 1, 4, CRIS, 5),
        ("BHH", 0, 1, 4, CRIS, 5),
        ("BHC", 0, 1, 4, CRIS, 5),
        ("BHN", 2, 3, 4, NORM, 5),
        ("BHV", 1, 2, 4, VOLA, 5),
        ("HSH", 0, 1, 2, CRIS, 4),
        ("HrH", -1, 0, 0, CRIS, 1),
    ]),
    (LONG, USUAL, {}, (2, 2, 4, VOLA, 5), f"{ANY} HsSr HNUDCO", [
        ("iHH", 0, 2, 4, VOLA, 5),
        ("iHN", 1, 3, 4, NORM, 5),
        ("HHC", -1, 1, 4, CRIS, 5),
    ]),
    (LONG, USUAL, {}, (2, 2, 2, BEAR, 4), f"{ANY} {ANY} HNUCVO", [
        ("HHH", 0, 2, 2, BEAR, 4),
        ("BHH", 0, 2, 2, BEAR, 4),
        ("bHN", 1, 3, 2, NORM, 4),
        ("SHH", -2, 0, 2, BEAR, 4),
        ("HHV", 0, 2, 2, VOLA, 4),
    ]),
    (LONG, USUAL, {}, (2, 2, 2, BULL, 4), f"{ANY} {ANY} HNDCVO", [
        ("BHH", 2, 4, 2, BULL, 4),
        ("SHH", -2, 0, 2, BULL, 4),
        ("BHD", 0, 2, 2, BEAR, 4),
    ]),
    (LONG, USUAL, {}, (2, 2, 2, CONS, 4), f"{ANY} {ANY} HNUDCV", [
        ("bHH", 1, 3, 2, CONS, 4),
        ("bHO", 1, 3, 2, CONS, 4),
    ]),
    # an order that found no fill: BEAR_TREND admits what is held, not what is desired
    (LONG, USUAL, {}, (1, 3, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("HHH", 2, 3, 2, NORM, 4),
        ("HHD", 0, 1, 2, BEAR, 4),
    ]),
    (LONG, USUAL, {}, (3, 1, 2, BEAR, 4), f"{ANY} {ANY} HNUCVO", [
        ("HHH", -2, 1, 2, BEAR, 4),
        ("BHH", 0, 3, 2, BEAR, 4),
        ("iHH", -1, 2, 2, BEAR, 4),
        ("BHN", 0, 3, 2, NORM, 4),
    ]),
    # shorts, and flips through zero
    (SHORT, USUAL, {}, (0, 0, 1, NORM, UNKNOWN), f"HbBsS {ANY} {DETECTS}", [
        ("sHH", -1, -1, 1, NORM, 2),
        ("SHH", -2, -2, 1, NORM, 2),
        ("SsH", -1, -1, 0, NORM, 1),
        ("SHU", 0, 0, 1, BULL, 2),
        ("SHD", -2, -2, 1, BEAR, 2),
        ("BHD", 0, 0, 1, BEAR, 2),
        ("BHU", 2, 2, 1, BULL, 2),
        ("SHC", 0, 0, 1, CRIS, 2),
        ("SHV", -1, -1, 1, VOLA, 2),
        ("rHH", 0, 0, 1, NORM, 2),
        ("iHH", 0, 0, 1, NORM, 2),
    ]),
    (SHORT, USUAL, {}, (-3, -3, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("HHH", 0, -3, 2, NORM, 4),
        ("bHH", 1, -2, 2, NORM, 4),
        ("BHH", 2, -1, 2, NORM, 4),
        ("sHH", -1, -4, 2, NORM, 4),
        ("SHH", -1, -4, 2, NORM, 4),
        ("rHH", 2, -1, 2, NORM, 4),
        ("iHH", -1, -4, 2, NORM, 4),
        ("SbH", -2, -5, 3, NORM, 5),
        ("HsH", 1, -2, 1, NORM, 2),
        ("HHC", 2, -1, 2, CRIS, 4),
        ("HHV", 1, -2, 2, VOLA, 4),
        ("sHU", 0, -3, 2, BULL, 4),
        ("bHU", 1, -2, 2, BULL, 4),
        ("sHD", -1, -4, 2, BEAR, 4),
        ("BHD", 2, -1, 2, BEAR, 4),
    ]),
    (SHORT, USUAL, {}, (-2, -2, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("rHH", 1, -1, 2, NORM, 4),
        ("iHH", -1, -3, 2, NORM, 4),
        ("BHD", 2, 0, 2, BEAR, 4),
    ]),
    (SHORT, USUAL, {}, (-1, -1, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("rHH", 1, 0, 2, NORM, 4),
        ("iHH", -1, -2, 2, NORM, 4),
        ("BHH", 2, 1, 2, NORM, 4),
        ("BHD", 1, 0, 2, BEAR, 4),
    ]),
    (SHORT, USUAL, {}, (-5, -5, 4, NORM, 5), f"HbBr HsSr {DETECTS}", [
        ("rHH", 3, -2, 4, NORM, 5),
        ("HHC", 4, -1, 4, CRIS, 5),
        ("HHV", 3, -2, 4, VOLA, 5),
        ("iHH", 0, -5, 4, NORM, 5),
    ]),
    (SHORT, USUAL, {}, (2, 1, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("SHH", -3, -1, 2, NORM, 4),
        ("SHU", -2, 0, 2, BULL, 4),
    ]),
    (SHORT, USUAL, {}, (-2, 0, 2, NORM, 4), f"HbBsS {ANY} {DETECTS}", [
        ("BHH", 4, 2, 2, NORM, 4),
        ("BHD", 2, 0, 2, BEAR, 4),
        ("SHU", 0, -2, 2, BULL, 4),
    ]),
    (SHORT, USUAL, {}, (-2, -2, 2, BULL, 4), f"{ANY} {ANY} HNDCVO", [
        ("SHH", 0, -2, 2, BULL, 4),
        ("SHN", -2, -4, 2, NORM, 4),
        ("BHH", 2, 0, 2, BULL, 4),
    ]),
    (SHORT, USUAL, {}, (4, -2, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("HHH", -6, -2, 2, NORM, 4),
        ("HHU", -4, 0, 2, BULL, 4),
    ]),
    # leverage stops increases and never forces a sale
    (CAP_2, USUAL, {}, (0, 0, 2, NORM, 4), f"HbB {ANY} {DETECTS}", [
        ("bHH", 1, 1, 2, NORM, 4),
        ("BiH", 2, 2, 4, NORM, 5),
    ]),
    (CAP_2, USUAL, {}, (4, 4, 2, NORM, 4), f"HsSr {ANY} {DETECTS}", [
        ("HHH", 0, 4, 2, NORM, 4),
        ("BiH", 0, 4, 4, NORM, 5),
        ("sHH", -1, 3, 2, NORM, 4),
        ("HHV", -2, 2, 2, VOLA, 4),
    ]),
    # 3 and 3 − 1 are both cut to 2
    (CAP_2, USUAL, {}, (1, 3, 2, NORM, 4), f"HSr {ANY} {DETECTS}", [
        ("HHH", 1, 2, 2, NORM, 4),
        ("sHH", 1, 2, 2, NORM, 4),
        ("SHH", 0, 1, 2, NORM, 4),
        ("rHH", 0, 1, 2, NORM, 4),
    ]),
    (CAP_0, USUAL, {}, (0, 0, 2, NORM, 4), f"H {ANY} {DETECTS}", [
        ("BiH", 0, 0, 4, NORM, 5),
    ]),
    (CAP_2_SHORT, USUAL, {}, (0, 0, 2, NORM, 4), f"HbBsS {ANY} {DETECTS}", [
        ("SiH", -2, -2, 4, NORM, 5),
    ]),
    (CAP_2_SHORT, USUAL, {}, (-4, -4, 2, NORM, 4), f"HbBr {ANY} {DETECTS}", [
        ("SiH", 0, -4, 4, NORM, 5),
        ("rHH", 2, -2, 2, NORM, 4),
    ]),
    # what a mandate does not admit is sold; 0.4 of 5 are 2
    (LONG, {"mandate": (-1.0, 0.4)}, {}, (4, 4, 2, NORM, 4), f"H {ANY} {DETECTS}", [
        ("HHH", -2, 2, 2, NORM, 4),
        ("SHH", -2, 2, 2, NORM, 4),
    ]),
    (SHORT, {"mandate": (-0.4, 0.2)}, {}, (-1, -1, 2, NORM, 4), f"{ANY} {ANY} {DETECTS}", [
        ("BHH", 2, 1, 2, NORM, 4),
        ("SHH", -1, -2, 2, NORM, 4),
    ]),
    (SHORT, {"mandate": (-0.4, 0.2)}, {}, (3, -3, 2, NORM, 4), f"HBr {ANY} {DETECTS}", [
        ("HHH", -5, -2, 2, NORM, 4),
        ("bHH", -5, -2, 2, NORM, 4),
        ("BHH", -4, -1, 2, NORM, 4),
    ]),
    # forced flat: nobody is asked for a direction, but share and stance can still be set
    (LONG, USUAL, HALTED, (3, 3, 2, NORM, 4), f"H {ANY} {DETECTS}", [
        ("HHH", -3, 0, 2, NORM, 4),
        ("BHH", -3, 0, 2, NORM, 4),
        ("HsH", -3, 0, 1, NORM, 2),
        ("HiC", -3, 0, 4, CRIS, 5),
        ("HHD", -3, 0, 2, BEAR, 4),
    ]),
    (LONG, OPENS_WILD, CLOSING, (3, 3, 2, NORM, 4), f"H {ANY} {DETECTS}", [
        ("BHH", -3, 0, 2, NORM, 2),
    ]),
    (SHORT, USUAL, HALTED, (-3, -3, 4, NORM, 5), f"H HsSr {DETECTS}", [
        ("SHU", 3, 0, 4, BULL, 5),
    ]),
    (LONG, USUAL, CLOSED, (2, 2, 0, NORM, 2), f"H HbBi {DETECTS}", [
        ("BHH", -2, 0, 0, NORM, 2),
    ]),
]  # fmt: skip
ROWS = [
    pytest.param(*given, legal, row, id=f"{i}:{row[0]}")
    for i, (*given, legal, rows) in enumerate(TABLE)
    for row in rows
]


@pytest.mark.parametrize(("settings", "world", "account_", "start", "legal", "row"), ROWS)
def test_table(settings, world, account_, start, legal, row):
    verbs, trade, *controls = row
    env = params(**settings)
    before = state(env, *start, **account_)
    seen, after, outcome = step(before, verbs, world_of(**world), env)
    assert by_letters(seen.mask) == legal
    position, desired, share, stance, _ = start
    roles = np.float32([desired / 5, share / 4, stance / 5])
    np.testing.assert_allclose(seen.obs[:, -1], roles, rtol=1e-6)
    assert (after.position, controls_of(after)) == (position + trade, tuple(controls))
    # the gap of 8 ticks belongs to what was held, the move of 4 to what is held then
    gross = (8 * position + 4 * (position + trade)) * 500
    fill, costs = outcome.fill, COSTS[abs(trade)]
    assert (fill.gross, fill.commission, fill.spread, fill.impact) == (gross, *costs)
    assert after.equity == before.equity + gross - sum(costs)
    assert (fill.traded, outcome.target) == (trade, position + trade)


def test_every_verb_of_every_agent_occurs_where_it_is_legal():
    seen = {
        (agent, verb)
        for *_, legal, rows in TABLE
        for row in rows
        for agent, (verb, allowed) in enumerate(zip(row[0], legal.split(), strict=True))
        if verb in allowed
    }
    assert seen == {(agent, v) for agent, known in enumerate(LETTERS) for v in known}


def test_ids_are_frozen():
    assert strategic.AGENTS == ("strategic", "portfolio_manager", "regime_detector")
    names = "HOLD BUY_CONSERVATIVE BUY_AGGRESSIVE SELL_CONSERVATIVE SELL_AGGRESSIVE"
    assert list(strategic.ACTIONS) == [*names.split(), "REDUCE_RISK", "INCREASE_RISK"]
    assert strategic.SHARES == replay.SHARES
    ids = (strategic.NORMAL, strategic.BULL_TREND, strategic.BEAR_TREND, strategic.CRISIS)
    assert (*ids, strategic.VOLATILE, strategic.CONSOLIDATION) == tuple(range(6))


# -- over several steps -------------------------------------------------------------------------


def play(env_state, decisions, world, env):
    """Return position and controls after each step."""
    path = []
    for verbs in decisions:
        _, env_state, _ = step(env_state, verbs, world, env)
        path.append((int(env_state.position), *controls_of(env_state)))
    return path


def test_the_cap_is_computed_at_the_first_decision_and_by_session():
    """σ changes with every bar; bar 3 opens a session, so its close is when the cap is new."""
    world = by_hand(*[(0, 0, 0, 0, QUIET)] * 2, (0, 0, 0, 0, QUIET | SESSION_START))
    sigma = [0.12, 0.01, 0.24, 0.06, 0.01, 0.12, 0.01, 0.01]
    world = world.replace(signals=world.signals.at[:, 0].set(jnp.float32(sigma)))
    env = params()
    decisions = ["BHH", "BHH", "HHH", "BHH", "HHC", "HsN", "HHH"]
    assert play(core.start(jnp.int32(0), env, strategic), decisions, world, env) == [
        (2, 2, 1, NORM, 2),  # 0.1 · 3⅓ / 0.12 = 2.78
        (2, 2, 1, NORM, 2),  # stands: σ = 0.01 would admit 5
        (2, 2, 1, NORM, 2),
        (4, 4, 1, NORM, 5),  # 0.1 · 3⅓ / 0.06 = 5.6
        (1, 1, 1, CRIS, 5),  # a quarter; what is cut is forgotten
        (1, 1, 0, NORM, 1),  # a new share: 0.05 · 3⅓ / 0.12 = 1.4
        (1, 1, 0, NORM, 1),
    ]


@pytest.mark.parametrize(("sigma", "cap"), [(0.162, 5), (0.1655, 4)])
def test_the_cap_follows_equity_and_price(sigma, cap):
    """5 contracts lose 400 points: $960,000 and $292,000 a contract make 3.288 of 3.333.

    0.25 · 3.288 is 5.07 · 0.162 and 4.97 · 0.1655; at the old price or equity it were 4 and 5.
    """
    world = by_hand((0, 0, -1_600, -1_600, QUIET), (-1_600,) * 4 + (QUIET | SESSION_START,))
    world = world.replace(signals=world.signals.at[:, 0].set(sigma))
    env = params(daily_loss=1.0)
    path = play(state(env, 5, 5, 4, NORM, 5), ["HHH"] * 3, world, env)
    assert path == [(5, 5, 4, NORM, 5)] * 2 + [(cap, cap, 4, NORM, cap)]


def test_the_cap_is_the_same_contract_everywhere():
    """XLA's float32 gives NumPy's contracts where the quotient is a whole number but for a bit."""
    count = 200_000
    rng = np.random.default_rng(0)
    share = rng.integers(0, 5, count)
    unit = rng.uniform(-0.1, 20, count).astype(np.float32)
    product = np.float32(strategic.SHARES)[share] * unit
    whole = np.float32(rng.integers(1, 60, count))
    sigma = np.nextafter(product / whole, np.float32(rng.choice([0, 1], count)))
    sigma[::10] = rng.uniform(0, 1, count // 10)
    sigma[:100] = 0
    env = params(max_contracts=50)

    @jax.vmap
    def ours(share, unit, sigma):
        signals = jnp.zeros(3).at[0].set(sigma)
        return strategic.fresh_cap(share, worlds.bounds(0, 50, unit=unit, signals=signals), env)

    floored = np.floor(product / np.maximum(sigma, np.float32(1e-6)))
    wanted = np.clip(floored, 0, 50).astype(int)
    found = jax.jit(ours)(jnp.asarray(share, jnp.int32), jnp.asarray(unit), jnp.asarray(sigma))
    np.testing.assert_array_equal(found, wanted)
    assert set(wanted.tolist()) == set(range(51))
    # another order of the operations is not the same
    other = np.float32(strategic.SHARES)[share] * (unit / np.maximum(sigma, np.float32(1e-6)))
    assert (np.clip(np.floor(other), 0, 50) != wanted).any()


@pytest.mark.parametrize("flags", [REGULAR, QUIET | HOLE], ids=["no volume", "hole"])
def test_an_order_without_a_fill_is_tried_again(flags):
    world = by_hand((0, 0, 0, 0, flags), (0, 0, 0, 0, flags))
    env = params()
    path = play(state(env, 1, 1, 2, NORM, 4), ["bHH", "bHH", "HHH"], world, env)
    assert path == [(1, 2, 2, NORM, 4), (1, 3, 2, NORM, 4), (3, 3, 2, NORM, 4)]
    # a stance that admits no longer long than what is held takes the desire away
    path = play(state(env, 1, 1, 2, NORM, 4), ["bHH", "HHD", "HHN"], world, env)
    assert path == [(1, 2, 2, NORM, 4), (1, 1, 2, BEAR, 4), (1, 1, 2, NORM, 4)]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_stop_takes_the_desire_and_leaves_share_stance_and_cap(sign):
    env = params(stop_atr=1.0, allow_short=True)
    before = state(env, 2 * sign, 2 * sign, 2, CONS, 4, stop=PRICE - 100 * sign)
    down = -200 * sign
    world = by_hand((0, max(0, down), min(0, down), down, QUIET))
    _, after, outcome = step(before, "HHH", world, env)
    assert outcome.fill.stopped
    assert (after.position, *controls_of(after)) == (0, 0, 2, CONS, 4)
    assert outcome.fill.gross == 2 * -100 * 500
    # and they can be set in the bar of the stop
    _, after, _ = step(before, "HrC", world, env)
    assert (after.position, *controls_of(after)) == (0, 0, 0, CRIS, 5)


def test_start_is_flat_a_tenth_and_normal():
    start = core.start(jnp.int32(0), params(), strategic)
    assert (int(start.position), *controls_of(start)) == (0, 0, 1, NORM, UNKNOWN)


# -- what others do with the team ---------------------------------------------------------------


@pytest.mark.parametrize("decided", ["HHH", "BHC", "iSV", "rsN"])
@pytest.mark.parametrize(
    ("stance", "detects"), [(NORM, "H"), (BULL, "N"), (CRIS, "N"), (CONS, "N")]
)
def test_neutral_agents_hold_and_see_nothing_unusual(decided, stance, detects):
    env = params()
    actions = jnp.array([known.index(v) for known, v in zip(LETTERS, decided, strict=True)])
    before = state(env, 2, 3, 2, stance, 4)
    found = strategic.neutral(before, actions, worlds.bounds(0, 5), env)
    letters = [known[a] for known, a in zip(LETTERS, found.tolist(), strict=True)]
    assert letters == ["H", "H", detects]
    for agent, chosen in enumerate(found.tolist()):
        assert chosen in strategic.NEUTRAL[agent]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (5, [2, 4, 5, 5, 5]),
        (3, [2, 3, 3, 3, 3]),
        (1, [1, 1, 1, 1, 1]),
        (0, [0, 0, 0, 0, 0]),
        (-4, [-2, -4, -4, -4, -4]),
    ],
)
def test_follow_leads_to_the_target_past_caps_and_stances(target, path):
    """From the smallest share, in a crisis."""
    env = params(allow_short=True)
    before, seen = state(env, 0, 0, 0, CRIS, 0), []
    for _ in path:
        actions = strategic.follow(before, jnp.int32(target), jnp.bool_(False), env)
        mask = strategic.masks(before, account.bounds(before, world_of(), env), env)
        assert mask[jnp.arange(3), actions].all()
        _, before, _ = _step(before, actions, world_of(), env)
        seen.append(int(before.position))
        before = before.replace(t=jnp.int32(0))
    assert seen == path
    assert controls_of(before)[1:] == (4, NORM, 5)
    # and out again
    for _ in range(3):
        actions = strategic.follow(before, jnp.int32(0), jnp.bool_(False), env)
        _, before, _ = _step(before, actions, world_of(), env)
        before = before.replace(t=jnp.int32(0))
    assert int(before.position) == 0


# -- random starts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "world"),
    [(LONG, USUAL), (SHORT, USUAL), (CAP_2, STILL), (SHORT, {"mandate": (-0.4, 0.6)})],
)
def test_random_start_draws_evenly_from_the_whole_legal_range(settings, world):
    count = 20_000
    env = params(random_start=True, **settings)
    market = world_of(**world)
    drawn = jax.jit(core.reset_many, static_argnums=(1, 4))(
        jax.random.key(0), count, market, env, strategic
    )
    position, controls = jax.device_get((drawn.position, drawn.controls))
    np.testing.assert_array_equal(controls.desired, position)

    slow = replay.Strategic(
        STRATEGIC.settings.replace(**settings),
        *(np.asarray(x) for x in (market.bars, market.impact, market.atr)),
        t=0,
        mandates=np.asarray(market.mandate),
        signals=np.asarray(market.signals),
        equity=EQUITY,
    )
    least, most = slow.mandate()
    leverage = 2 if "max_leverage" in settings else 5
    for share, stance in itertools.product(range(5), range(6)):
        at = (controls.share == share) & (controls.stance == stance)
        assert abs(at.sum() - count / 30) < 4.5 * np.sqrt(count / 30)
        cap = slow.risk_cap(share)
        assert set(controls.cap[at]) == {cap}
        used = cap // {CRISIS: 4, VOLATILE: 2}.get(stance, 1)
        high = min(used, leverage, most)
        low = -min(used, leverage, -least) if "allow_short" in settings else 0
        values, counts = np.unique(position[at], return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        even = at.sum() / len(values)
        assert ((counts - even) ** 2 / even).sum() < 35  # chi-square, at most 10 degrees of freedom


# -- the whole state space ----------------------------------------------------------------------


class Bounded(replay.Strategic):
    """The independent account under given bounds; its equity buys one contract."""

    def bounds(self):
        return self.given

    def mandate(self):
        return self.kept

    def opens(self):
        return self.opened

    def unit(self):
        return np.float32(1)

    def sigma(self):
        return self.volatility


MAX = 4
# fresh caps by share: 4 4 4 4 4, 1 2 3 4 4, or 0 0 0 1 1
SIGMAS = tuple(map(np.float32, (0.01, 0.049, 0.2)))
EVERY = np.array(list(np.ndindex(7, 7, 7)))


def state_space(allow_short: bool) -> np.ndarray:
    """Return p, D, share, stance, C, leverage cap, σ, flat, opens and mandate of every state."""
    low = -MAX if allow_short else 0
    mandates = [(low, MAX), (0, 2), *([(-2, 0)] if allow_short else [])]
    controls = [
        (d, share, stance, cap)
        for cap in (UNKNOWN, 0, 1, 3, 4)
        for d in range(low, MAX + 1)
        for share, stance in itertools.product(range(5), range(6))
        if abs(d) <= max(cap, 0)
    ]
    around = itertools.product((0, 2, MAX), range(len(SIGMAS)), (0, 1), (0, 1), mandates)
    around = [(*rest, *mandate) for *rest, mandate in around]
    return np.array([
        (p, *own, *rest)
        for p, own, rest in itertools.product(range(low, MAX + 1), controls, around)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("allow_short", "nth"),
    # strides that share no factor with any axis of the space (5, 390, 72 and 9, 630, 108): every
    # pair of values meets
    [(False, 7), (True, 11), *(pytest.param(x, 1, marks=pytest.mark.slow) for x in (False, True))],
)
def test_masks_and_orders_against_brute_force_over_every_state(allow_short, nth):
    """At most 4 contracts, lots 1 / 2; all 343 decisions in every state, one of them by replay."""
    settings = STRATEGIC.settings.replace(max_contracts=MAX, allow_short=allow_short)
    env = worlds.params_of(settings)
    every = state_space(allow_short)
    space = every[::nth]
    assert all(len({*a}) == len({*b}) for a, b in zip(space.T, every.T, strict=True))

    @jax.jit
    def ours(rows):
        return jax.lax.map(one, rows, batch_size=500)

    def one(row):
        p, d, share, stance, cap, leverage, sigma, flat, opens, least, most = row
        controls = strategic.Controls(d, share, stance, cap)
        now = core.start(jnp.int32(0), env, strategic).replace(position=p, controls=controls)
        low = -jnp.maximum(leverage, -p) if allow_short else jnp.int32(0)
        signals = jnp.zeros(3).at[0].set(jnp.array(SIGMAS)[sigma])
        bounds = worlds.bounds(
            low, jnp.maximum(leverage, p), flat == 1, least, most, opens == 1, 1.0, signals
        )
        mask = strategic.masks(now, bounds, env)
        order = jax.vmap(lambda a: strategic.compose(now, a, bounds, env))(jnp.asarray(EVERY))
        c = order.controls
        orders = jnp.stack([order.trade, order.wanted, c.desired, c.share, c.stance, c.cap], 1)
        orders = orders.astype(jnp.int8)
        cube = orders.reshape(7, 7, 7, 6)
        legal = jnp.einsum("i,j,k->ijk", *mask)
        wrong = []
        for agent in range(3):
            differs = (cube != jnp.take(cube, jnp.array([0]), axis=agent)).any(-1)
            others = tuple({0, 1, 2} - {agent})
            # illegal: HOLD by another name, whatever the others choose, even what is illegal;
            # legal: it matters for some legal choice of the others
            needless = mask[agent] & ~(differs & legal).any(others)
            missing = ~mask[agent] & differs.any(others)
            wrong.append((needless | missing).at[0].set(~mask[agent, 0]))
        return mask, jnp.stack(wrong), pick(row), orders[pick(row)]

    def pick(row):
        """Choose one decision by a hash of the state."""
        mix = jnp.array([7, 31, 101, 211, 401, 59, 83, 139, 173, 197, 223])
        return (row * mix).sum() % len(EVERY)

    masks, wrong, picked, orders = jax.device_get(ours(jnp.asarray(space, dtype=jnp.int32)))
    assert not wrong.any(), space[wrong.any((1, 2))][0]
    assert len(np.unique(picked)) == len(EVERY)
    slow = Bounded(settings, None, None, None, t=0)
    tried = np.random.default_rng(0).random(len(space)) < 1_500 / len(space)
    rows = zip(space.tolist(), EVERY[picked].tolist(), orders.tolist(), masks, tried, strict=True)
    for row, decision, order, mask, all_are_tried in rows:
        slow.position, slow.desired, slow.share, slow.stance, slow.cap = row[:5]
        leverage, sigma, flat, slow.opened, *slow.kept = row[5:]
        slow.volatility, p = SIGMAS[sigma], slow.position
        slow.given = (-max(leverage, -p) if allow_short else 0, max(leverage, p), bool(flat))
        assert slow.compose(decision) == tuple(order), (row, decision)
        if all_are_tried:
            np.testing.assert_array_equal(mask, slow.masks(), err_msg=str(row))
