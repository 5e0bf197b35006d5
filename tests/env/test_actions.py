"""Every verb of every agent against a table written by hand: contracts, controls, cents, masks.

MNQ: a tick is 50 cents, commission 75 cents, half the spread 25 cents a tick; lots 1 / 3, maximum
6. The impact coefficient is ½ tick, hence 12.5 · q√q cents, rounded up.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account, core, tactical
from gm_jax.env.types import (
    DRAWDOWN,
    HOLE,
    MARGIN_CALL,
    OPEN_ACCOUNT,
    REGULAR,
    ROLL,
    RUIN,
    SESSION_START,
    TRADED,
)
from gm_jax.mappo.rollout import auto_reset
from gm_jax.settings import Settings
from tests.env import replay, worlds
from tests.env.worlds import NORMAL, PRICE, by_hand


EQUITY = 10_000_000  # cents
VERBS = "HbBsS"  # HOLD, BUY_SMALL, BUY_LARGE, SELL_SMALL, SELL_LARGE


def params(episode_length=1_000, **changes):
    return worlds.params_of(Settings(**({"random_start": False} | changes)), episode_length)


def state(env_params, position=0, desired=0, limit=6, **changes):
    controls = tactical.Controls(jnp.int32(desired), jnp.int32(limit))
    fresh = core.start(jnp.int32(0), env_params, tactical)
    given = {"position": position, "controls": controls, **changes}
    as_device = {
        k: v if k == "controls" else jnp.asarray(v, dtype=getattr(fresh, k).dtype)
        for k, v in given.items()
    }
    return fresh.replace(**as_device)


@jax.jit
def _step(env_state, actions, world, env_params):
    mask = core.observe(env_state, world, env_params, tactical).mask
    return mask, *core.step(env_state, actions, world, env_params, tactical)


def step(env_state, verbs, world, env_params):
    """Play one step by letters; return (mask by letters, state, outcome) on the host."""
    actions = jnp.array([VERBS.index(v) for v in verbs])
    mask, after, outcome = jax.device_get(_step(env_state, actions, world, env_params))
    letters = " ".join("".join(np.array(list(VERBS))[row]) for row in mask)
    return letters, after, outcome


def money(outcome):
    """Return gross, commission, spread and impact, cents."""
    fill = outcome.fill
    return tuple(int(x) for x in (fill.gross, fill.commission, fill.spread, fill.impact))


LONG, SHORT = {}, {"allow_short": True}
CAP_2, CAP_0 = {"max_leverage": 0.75}, {"max_leverage": 0.25}  # 2.5 and 0.8 contracts
CAP_2_SHORT = CAP_2 | SHORT
HALTED, CLOSED = {"halted": True}, {"closed": DRAWDOWN}

# start (p, D, L) | legal verbs by agent | then rows of:
# decisions of tactical, risk, execution -> contracts at the open, D, L; commission, spread, impact
TABLE = [
    (LONG, {}, (0, 0, 6), "HbB HsS HbB", [
        ("HHH", 0, 0, 6, 0, 0, 0),
        ("bHH", 0, 1, 6, 0, 0, 0),
        ("BHH", 0, 3, 6, 0, 0, 0),
        ("bHb", 1, 1, 6, 75, 25, 13),
        ("bHB", 1, 1, 6, 75, 25, 13),
        ("BHb", 1, 3, 6, 75, 25, 13),
        ("BHB", 3, 3, 6, 225, 75, 65),
        ("HHB", 0, 0, 6, 0, 0, 0),
        ("HsH", 0, 0, 5, 0, 0, 0),
        ("HSH", 0, 0, 3, 0, 0, 0),
    ]),
    # a sign that does not match trades nothing; what the clip cuts is forgotten
    (LONG, {}, (2, 2, 6), "HbBsS HsS HbBsS", [
        ("HHH", 0, 2, 6, 0, 0, 0),
        ("bHs", 0, 3, 6, 0, 0, 0),
        ("bHS", 0, 3, 6, 0, 0, 0),
        ("sHb", 0, 1, 6, 0, 0, 0),
        ("sHB", 0, 1, 6, 0, 0, 0),
        ("HHb", 0, 2, 6, 0, 0, 0),
        ("HHS", 0, 2, 6, 0, 0, 0),
        ("sHs", -1, 1, 6, 75, 25, 13),
        ("sHS", -1, 1, 6, 75, 25, 13),
        ("SHH", 0, 0, 6, 0, 0, 0),
        ("SHs", -1, 0, 6, 75, 25, 13),
        ("SHS", -2, 0, 6, 150, 50, 36),
        ("BHB", 3, 5, 6, 225, 75, 65),
    ]),
    (LONG, {}, (4, 4, 6), "HbBsS HsS HbBsS", [
        ("BHB", 2, 6, 6, 150, 50, 36),
        ("BHb", 1, 6, 6, 75, 25, 13),
        ("BSB", -1, 3, 3, 75, 25, 13),
        ("BsB", 1, 5, 5, 75, 25, 13),
    ]),
    (LONG, {}, (5, 6, 6), "HsS HsS HbBsS", [
        ("HHb", 1, 6, 6, 75, 25, 13),
        ("HHB", 1, 6, 6, 75, 25, 13),
        ("sHs", 0, 5, 6, 0, 0, 0),
        ("SHS", -2, 3, 6, 150, 50, 36),
    ]),
    # the limit: clipped at both ends, widened and used in the same step
    (LONG, {}, (0, 0, 0), "HbB HbB HbB", [
        ("BHB", 0, 0, 0, 0, 0, 0),
        ("HbH", 0, 0, 1, 0, 0, 0),
        ("HBH", 0, 0, 3, 0, 0, 0),
        ("BbB", 1, 1, 1, 75, 25, 13),
        ("BBB", 3, 3, 3, 225, 75, 65),
    ]),
    (LONG, {}, (0, 0, 2), "HbB HbBsS HbB", [
        ("HsH", 0, 0, 1, 0, 0, 0),
        ("HSH", 0, 0, 0, 0, 0, 0),
        ("BHB", 2, 2, 2, 150, 50, 36),
    ]),
    (LONG, {}, (0, 0, 5), "HbB HbBsS HbB", [
        ("HbH", 0, 0, 6, 0, 0, 0),
        ("HBH", 0, 0, 6, 0, 0, 0),
    ]),
    # what exceeds the limit is traded whatever execution says
    (LONG, {}, (6, 6, 6), "HsS HsS HsS", [
        ("HSH", -3, 3, 3, 225, 75, 65),
        ("HSs", -3, 3, 3, 225, 75, 65),
        ("HSB", -3, 3, 3, 225, 75, 65),
        ("SSS", -3, 3, 3, 225, 75, 65),
        ("HsH", -1, 5, 5, 75, 25, 13),
        ("SsH", -1, 3, 5, 75, 25, 13),
        ("SsS", -3, 3, 5, 225, 75, 65),
    ]),
    (LONG, {}, (5, 4, 4), "HbBsS HbBsS HbBsS", [
        ("HHH", -1, 4, 4, 75, 25, 13),
        ("HHB", -1, 4, 4, 75, 25, 13),
        ("sHs", -1, 3, 4, 75, 25, 13),
        ("sHS", -2, 3, 4, 150, 50, 36),
        ("HbH", 0, 4, 5, 0, 0, 0),
        ("HbS", -1, 4, 5, 75, 25, 13),
        ("bbB", 0, 5, 5, 0, 0, 0),
        ("BBB", 1, 6, 6, 75, 25, 13),
        ("SSS", -4, 1, 1, 300, 100, 100),
    ]),
    # SELL_SMALL is never more than the excess of at least 3: illegal
    (LONG, {}, (6, 0, 0), "HbB HbB HS", [
        ("HHH", -6, 0, 0, 450, 150, 184),
        ("HbH", -5, 0, 1, 375, 125, 140),
        ("HBH", -3, 0, 3, 225, 75, 65),
        ("HBS", -6, 0, 3, 450, 150, 184),
        ("BBS", -3, 3, 3, 225, 75, 65),
    ]),
    # shorts, and flips through zero
    (SHORT, {}, (0, 0, 6), "HbBsS HsS HbBsS", [
        ("sHs", -1, -1, 6, 75, 25, 13),
        ("SHs", -1, -3, 6, 75, 25, 13),
        ("SHS", -3, -3, 6, 225, 75, 65),
        ("SHB", 0, -3, 6, 0, 0, 0),
        ("BHB", 3, 3, 6, 225, 75, 65),
        ("SSS", -3, -3, 3, 225, 75, 65),
    ]),
    (SHORT, {}, (2, 2, 6), "HbBsS HsS HbBsS", [
        ("SHS", -3, -1, 6, 225, 75, 65),
        ("SHs", -1, -1, 6, 75, 25, 13),
        ("sHS", -1, 1, 6, 75, 25, 13),
    ]),
    (SHORT, {}, (-2, -2, 6), "HbBsS HsS HbBsS", [
        ("BHB", 3, 1, 6, 225, 75, 65),
        ("BHb", 1, 1, 6, 75, 25, 13),
        ("BHS", 0, 1, 6, 0, 0, 0),
        ("sHS", -1, -3, 6, 75, 25, 13),
    ]),
    (SHORT, {}, (3, -3, 3), "HbBsS HbBsS HsS", [
        ("HHH", 0, -3, 3, 0, 0, 0),
        ("HHs", -1, -3, 3, 75, 25, 13),
        ("HHS", -6, -3, 3, 450, 150, 184),
        ("SBS", -9, -6, 6, 675, 225, 338),
    ]),
    (SHORT, {}, (-4, -4, 6), "HbBsS HsS HbBsS", [
        ("SHS", -2, -6, 6, 150, 50, 36),
        ("BHB", 3, -1, 6, 225, 75, 65),
    ]),
    (SHORT, {}, (-6, -6, 6), "HbB HsS HbB", [
        ("HSH", 3, -3, 3, 225, 75, 65),
        ("HsH", 1, -5, 5, 75, 25, 13),
        ("BSb", 3, -3, 3, 225, 75, 65),
    ]),
    (SHORT, {}, (-5, -4, 4), "HbBsS HbBsS HbBsS", [
        ("HHH", 1, -4, 4, 75, 25, 13),
        ("bHB", 2, -3, 4, 150, 50, 36),
    ]),
    # leverage stops increases and never forces a sale
    (CAP_2, {}, (0, 0, 6), "HbB HsS HbB", [
        ("BHB", 2, 2, 6, 150, 50, 36),
        ("bHB", 1, 1, 6, 75, 25, 13),
    ]),
    (CAP_2, {}, (4, 4, 6), "HsS HsS HsS", [
        ("HHH", 0, 4, 6, 0, 0, 0),
        ("BHB", 0, 4, 6, 0, 0, 0),
        ("sHS", -1, 3, 6, 75, 25, 13),
        ("HSH", -1, 3, 3, 75, 25, 13),
    ]),
    (CAP_2, {}, (4, 6, 6), "HS HsS HsS", [
        ("HHB", 0, 4, 6, 0, 0, 0),
        ("SHS", -1, 3, 6, 75, 25, 13),
    ]),
    (CAP_0, {}, (0, 0, 6), "H HsS H", [
        ("BHB", 0, 0, 6, 0, 0, 0),
    ]),
    (CAP_2_SHORT, {}, (0, 0, 6), "HbBsS HsS HbBsS", [
        ("SHS", -2, -2, 6, 150, 50, 36),
    ]),
    (CAP_2_SHORT, {}, (-4, -4, 6), "HbB HsS HbB", [
        ("HHH", 0, -4, 6, 0, 0, 0),
        ("SHS", 0, -4, 6, 0, 0, 0),
    ]),
    (CAP_2_SHORT, {}, (4, -2, 6), "HbB HsS HsS", [
        ("SHS", -6, -2, 6, 450, 150, 184),
    ]),
    # forced flat: nobody is asked, but the limit can still be set
    (LONG, HALTED, (3, 3, 6), "H HsS H", [
        ("HHH", -3, 0, 6, 225, 75, 65),
        ("BHB", -3, 0, 6, 225, 75, 65),
        ("HSH", -3, 0, 3, 225, 75, 65),
    ]),
    (LONG, HALTED, (0, 0, 3), "H HbBsS H", [
        ("BbB", 0, 0, 4, 0, 0, 0),
    ]),
    (SHORT, HALTED, (-3, -3, 6), "H HsS H", [
        ("SHS", 3, 0, 6, 225, 75, 65),
    ]),
    (LONG, CLOSED, (2, 2, 6), "H HsS H", [
        ("BHB", -2, 0, 6, 150, 50, 36),
    ]),
]  # fmt: skip
ROWS = [
    pytest.param(*world, legal, row, id=f"{i}:{row[0]}")
    for i, (*world, legal, rows) in enumerate(TABLE)
    for row in rows
]


@pytest.mark.parametrize(("settings", "account_", "start", "legal", "row"), ROWS)
def test_table(settings, account_, start, legal, row):
    verbs, trade, desired, limit, commission, spread, impact = row
    env = params(**settings)
    before = state(env, *start, **account_)
    mask, after, outcome = step(before, verbs, by_hand((8, 12, 8, 12, NORMAL)), env)
    assert mask == legal
    position = start[0] + trade
    assert (after.position, after.controls.desired, after.controls.limit) == (
        position,
        desired,
        limit,
    )
    # the gap of 8 ticks belongs to what was held, the move of 4 to what is held then
    gross = (8 * start[0] + 4 * position) * 50
    assert money(outcome) == (gross, commission, spread, impact)
    assert after.equity == EQUITY + gross - commission - spread - impact
    assert outcome.fill.traded == trade
    assert not outcome.fill.stopped


def test_every_verb_of_every_agent_occurs_where_it_is_legal():
    seen = {
        (agent, verb)
        for *_, legal, rows in TABLE
        for row in rows
        for agent, (verb, allowed) in enumerate(zip(row[0], legal.split(), strict=True))
        if verb in allowed
    }
    assert seen == set(itertools.product(range(3), VERBS))


def test_spread_is_two_ticks_outside_regular_hours():
    env = params()
    _, _, outcome = step(state(env), "BHB", by_hand((0, 0, 0, 0, TRADED)), env)
    assert money(outcome) == (0, 225, 150, 65)


@pytest.mark.parametrize("flags", [REGULAR, NORMAL | HOLE], ids=["no volume", "hole"])
def test_no_fill_but_the_position_is_marked(flags):
    env = params()
    world = by_hand((-30, -20, -40, -20, flags))
    _, after, outcome = step(state(env, 2, 2), "BHB", world, env)
    assert money(outcome) == (2 * -20 * 50, 0, 0, 0)
    assert (after.position, after.controls.desired) == (2, 5)
    assert outcome.fill.traded == 0
    # the decision stands, so the next bar fills what execution asks for then
    _, after, outcome = step(after, "HHB", world, env)
    assert (after.position, *money(outcome)) == (5, 0, 225, 75, 65)


@pytest.mark.parametrize("flags", [REGULAR, NORMAL | HOLE], ids=["no volume", "hole"])
def test_forced_sale_waits_for_a_bar_that_fills(flags):
    env = params()
    world = by_hand((0, 0, 0, 0, flags))
    _, after, _ = step(state(env, 3, 3, halted=True), "HHH", world, env)
    assert (after.position, bool(after.halted)) == (3, True)
    _, after, _ = step(after, "HHH", world, env)
    assert after.position == 0


@pytest.mark.parametrize(("position", "gap"), [(2, 400), (-2, 400), (2, -400)])
def test_roll_charges_both_sides_and_its_gap_is_nobodys(position, gap):
    env = params(allow_short=True)
    world = by_hand((gap, gap + 3, gap, gap + 3, NORMAL | ROLL))
    _, after, outcome = step(state(env, position, position), "HHH", world, env)
    assert money(outcome) == (position * 3 * 50, 2 * 150, 2 * 50, 2 * 36)
    assert outcome.fill.roll_cost == 2 * (150 + 50 + 36)
    assert after.position == position
    assert outcome.fill.traded == 0


def test_roll_with_an_order_charges_the_order_too_and_a_flat_account_nothing():
    env = params()
    world = by_hand((400, 400, 400, 400, NORMAL | ROLL))
    _, after, outcome = step(state(env, 2, 2), "BHB", world, env)
    assert money(outcome) == (0, 300 + 225, 100 + 75, 72 + 65)
    assert (outcome.fill.roll_cost, after.position) == (472, 5)
    _, _, outcome = step(state(env), "HHH", world, env)
    assert (money(outcome), outcome.fill.roll_cost) == ((0, 0, 0, 0), 0)


# -- stops: 1 ATR = 100 ticks ----------------------------------------------------------------


def stopped_at(sign):
    """Return an account of 2 contracts whose stop is 100 ticks away, and its parameters."""
    env = params(stop_atr=1.0, allow_short=True)
    return state(env, 2 * sign, 2 * sign, stop=PRICE - 100 * sign), env


def bar(sign, open_, worst, close, flags=NORMAL):
    """Return a bar for a long position, mirrored for a short one."""
    prices = [sign * x for x in (open_, worst, close)]
    return prices[0], max(*prices, 0), min(*prices, 0), prices[2], flags


@pytest.mark.parametrize("sign", [1, -1])
def test_stop_inside_the_bar_fills_at_its_price_and_no_reentry(sign):
    before, env = stopped_at(sign)
    _, after, outcome = step(before, "HHH", by_hand(bar(sign, -10, -100, -20)), env)
    assert money(outcome) == (2 * -100 * 50, 150, 50, 36)
    assert (after.position, after.stop, after.controls.desired) == (0, 0, 0)
    assert outcome.fill.stopped

    # an order of the same bar fills first; both are paid, and the larger position is stopped anew
    verbs = "bHB" if sign > 0 else "sHS"
    _, after, outcome = step(before, verbs, by_hand(bar(sign, -10, -110, -20)), env)
    assert money(outcome) == ((2 * -10 + 3 * -100) * 50, 75 + 225, 25 + 75, 13 + 65)
    assert (after.position, after.controls.desired) == (0, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_gap_through_the_stop_fills_at_the_open_and_the_order_lapses(sign):
    before, env = stopped_at(sign)
    verbs = "BHB" if sign > 0 else "SHS"
    _, after, outcome = step(before, verbs, by_hand(bar(sign, -150, -300, -250)), env)
    assert money(outcome) == (2 * -150 * 50, 150, 50, 36)
    assert (after.position, after.stop, after.controls.desired) == (0, 0, 0)
    assert (outcome.fill.traded, bool(outcome.fill.stopped)) == (0, True)


@pytest.mark.parametrize("sign", [1, -1])
def test_stop_is_left_alone_one_tick_before_it_and_without_volume(sign):
    before, env = stopped_at(sign)
    for world in (bar(sign, 0, -99, -50), bar(sign, -120, -130, -50, REGULAR)):
        _, after, outcome = step(before, "HHH", by_hand(world), env)
        assert money(outcome) == (2 * -50 * 50, 0, 0, 0)
        assert (after.position, after.stop) == (2 * sign, PRICE - 100 * sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_stop_moves_with_additions_flips_and_rolls_only(sign):
    before, env = stopped_at(sign)
    up, down = ("B", "S") if sign > 0 else ("S", "B")
    world = by_hand(bar(sign, 40, 40, 40))
    for verbs, position, stop in (
        (f"{up}H{up}", 5, 40 - 100),
        (f"{down.lower()}H{down}", 1, -100),
        (f"{down}H{down}", -1, 40 + 100),
    ):
        _, after, _ = step(before, verbs, world, env)
        assert (after.position, after.stop) == (sign * position, PRICE + sign * stop)
    # a roll of −500 ticks takes the stop along: no gap-through
    rolled = bar(sign, -500, -590, -520, NORMAL | ROLL)
    _, after, outcome = step(before, "HHH", by_hand(rolled), env)
    assert (after.position, after.stop) == (2 * sign, PRICE - 600 * sign)
    assert outcome.fill.gross == 2 * -20 * 50


# -- limits -------------------------------------------------------------------------------------


def test_daily_loss_is_flat_at_the_next_open_until_the_next_session():
    env = params()
    quiet = (-1_001,) * 4
    world = by_hand(
        (0, 0, -1_001, -1_001, NORMAL),  # 6 contracts lose $3,003 of $100,000
        (*quiet, NORMAL),
        (*quiet, NORMAL),
        (*quiet, NORMAL | SESSION_START),
        (*quiet, NORMAL),
    )
    _, now, outcome = step(state(env, 6, 6), "HHH", world, env)
    assert now.halted
    assert not (outcome.terminated or outcome.truncated)
    seen = []
    for _ in range(4):
        mask, now, _ = step(now, "BHB", world, env)
        seen.append((mask, int(now.position), bool(now.halted)))
    halted, free = "H HsS H", "HbB HsS HbB"
    # what was decided at the last close of the session was decided under the halt
    assert seen == [
        (halted, 0, True),
        (halted, 0, True),
        (halted, 0, False),
        (free, 3, False),
    ]
    assert now.session_equity == EQUITY - 6 * 1_001 * 50 - 450 - 150 - 184


def test_daily_loss_of_less_than_the_limit_halts_nothing():
    env = params()
    _, now, _ = step(state(env, 6, 6), "HHH", by_hand((0, 0, -999, -999, NORMAL)), env)
    assert not now.halted


CRASHES = [
    # move in ticks, settings, position -> reason, terminated
    (-8_333, {}, 6, OPEN_ACCOUNT, False),
    (-8_334, {}, 6, DRAWDOWN, False),
    (-19_999, {}, 6, DRAWDOWN, False),
    (-20_000, {}, 6, RUIN, True),
    (8_334, SHORT, -6, DRAWDOWN, False),
    (20_000, SHORT, -6, RUIN, True),
    (0, {"maintenance_margin": 0.56}, 6, MARGIN_CALL, True),
    (0, {"maintenance_margin": 0.55}, 6, OPEN_ACCOUNT, False),
    # one cause after another in a bar: ruin, then margin call, then drawdown
    (-20_000, {"maintenance_margin": 0.56}, 6, RUIN, True),
    (-9_000, {"maintenance_margin": 0.56}, 6, MARGIN_CALL, True),
]


@pytest.mark.parametrize(("move", "settings", "position", "reason", "terminated"), CRASHES)
def test_ruin_and_margin_call_terminate_and_drawdown_truncates(
    move, settings, position, reason, terminated
):
    env = params(**settings)
    world = by_hand((0, max(move, 0), min(move, 0), move, NORMAL))
    _, after, outcome = step(state(env, position, position), "HHH", world, env)
    truncated = reason == DRAWDOWN
    assert (after.closed, outcome.terminated, outcome.truncated) == (reason, terminated, truncated)
    # the step itself resets nothing, and the account only gets flat
    assert (after.t, after.steps, after.position) == (1, 1, position)
    if reason != OPEN_ACCOUNT:
        _, after, _ = step(after, "BHB", world, env)
        assert (after.position, after.closed) == (0, reason)
        _, after, outcome = step(after, "BHB", world, env)
        assert (after.position, outcome.fill.cost) == (0, 0)


def test_drawdown_is_measured_from_the_peak():
    env = params(daily_loss=1.0)
    world = by_hand((0, 4_000, 0, 4_000, NORMAL), (4_000, 4_000, -6_000, -6_000, NORMAL))
    _, after, _ = step(state(env, 6, 6), "HHH", world, env)
    _, after, _ = step(after, "HHH", world, env)  # $112,000 to $82,000: 26.8 %
    assert (after.peak, after.closed) == (EQUITY + 1_200_000, DRAWDOWN)


@pytest.mark.parametrize(("played", "ended"), [(3, False), (4, True)])
def test_the_windows_last_step_truncates(played, ended):
    env = params(episode_length=5)
    _, after, outcome = step(state(env, steps=played), "HHH", by_hand(), env)
    assert (outcome.terminated, outcome.truncated) == (False, ended)
    assert (after.t, after.steps) == (1, played + 1)


def test_only_auto_reset_starts_a_new_window():
    """Those that are done start afresh, the others keep every bit."""
    env = params()
    used = state(env, 3, 4, 5, t=6, steps=6, equity=9_000_000, halted=True, closed=DRAWDOWN)
    batch = jax.tree.map(lambda x: jnp.stack([x] * 4), used)
    done = jnp.array([True, False, True, False])
    bits = jax.random.bits(jax.random.key(0), (4, core.reset_bits(tactical)), jnp.uint32)
    after = jax.jit(partial(auto_reset, team=tactical))(bits, batch, done, by_hand(), env)
    at = lambda i: jax.device_get(jax.tree.map(lambda x: x[i], after))  # noqa: E731
    for i in (1, 3):
        jax.tree.map(np.testing.assert_array_equal, at(i), jax.device_get(used))
    for i in (0, 2):
        fresh = core.start(at(i).t, env, tactical)
        assert at(i).t in (0, 1)  # two windows are offered
        jax.tree.map(np.testing.assert_array_equal, at(i), jax.device_get(fresh))


# -- the whole state space ----------------------------------------------------------------------


class Bounded(replay.Tactical):
    """The independent account under given bounds."""

    def bounds(self):
        return self.given

    def mandate(self):
        return self.kept


@pytest.mark.parametrize("allow_short", [False, True])
def test_masks_and_orders_against_brute_force_over_every_state(allow_short):
    """p, D, L, leverage cap, forced flat and mandate for at most 4 contracts, lots 1 / 2."""
    settings = Settings(max_contracts=4, lots_small=1, lots_large=2, allow_short=allow_short)
    low = -4 if allow_short else 0
    mandates = [(low, 4), (0, 2), (0, 0), *([(-2, 0)] if allow_short else [])]
    space = np.array([
        (p, d, limit, cap, flat, *mandate)
        for p, d, limit, cap, flat, mandate in itertools.product(
            range(low, 5), range(low, 5), range(5), (0, 1, 3), (0, 1), mandates
        )
        if abs(d) <= limit
    ])  # fmt: skip
    every = np.array(list(itertools.product(range(5), repeat=3)))
    env = worlds.params_of(settings)

    @jax.jit
    @jax.vmap
    def ours(row):
        position, desired, limit, cap, flat, least, most = row
        controls = tactical.Controls(desired, limit)
        now = core.start(jnp.int32(0), env, tactical).replace(position=position, controls=controls)
        low = -jnp.maximum(cap, -position) if allow_short else jnp.int32(0)
        bounds = worlds.bounds(low, jnp.maximum(cap, position), flat == 1, least, most)
        order = jax.vmap(lambda a: tactical.compose(now, a, bounds, env))(jnp.asarray(every))
        orders = (order.trade, order.wanted, order.controls.desired, order.controls.limit)
        return tactical.masks(now, bounds, env), jnp.stack(orders, axis=1)

    masks, orders = jax.device_get(ours(jnp.asarray(space, dtype=jnp.int32)))
    slow = Bounded(settings, None, None, None, t=0)
    rng = np.random.default_rng(0)
    for row, mask, order in zip(space.tolist(), masks, orders, strict=True):
        slow.position, slow.desired, slow.limit, cap, flat, *slow.kept = row
        p = slow.position
        slow.given = (-max(cap, -p) if allow_short else 0, max(cap, p), bool(flat))
        np.testing.assert_array_equal(mask, slow.masks(), err_msg=str(row))
        for i in rng.integers(0, len(every), 20):
            assert slow.compose(every[i].tolist()) == tuple(order[i]), (row, every[i])

    # an illegal action is HOLD by another name, whatever anybody chooses: no state excepted
    order = orders.reshape(-1, 5, 5, 5, 4)
    for agent in range(3):
        held = np.take(order, [0], axis=agent + 1)
        same = (order == held).all(-1)
        others = tuple(x for x in (1, 2, 3) if x != agent + 1)
        assert (same.all(others) | masks[:, agent]).all()


def test_bounds_come_from_equity_and_price():
    """Leverage 3 on $100,000 at $30,000 a contract: 10; ruined accounts may hold nothing."""
    env = params(max_contracts=50, allow_short=True)
    price = jnp.int32(PRICE)
    for equity, cap in ((EQUITY, 10), (9_999_999, 9), (999_999, 0), (0, 0), (-EQUITY, 0)):
        assert account.leverage_cap(jnp.int32(equity), price, env) == cap
    bounds = account.bounds(state(env, -12, equity=5_000_000), by_hand(), env)
    assert (bounds.low, bounds.high, bool(bounds.flat)) == (-12, 5, False)


@pytest.mark.parametrize(
    ("start", "decided", "neutral"),
    [
        ((0, 0, 6), "BHH", "HHB"),  # wanted 3: all at once
        ((0, 0, 6), "BSH", "HHB"),
        ((0, 0, 0), "BHH", "HHH"),  # no limit, nothing wanted
        ((0, 0, 0), "BbH", "HHB"),  # the limit as widened counts
        ((4, 4, 6), "SHB", "HHS"),
        ((4, 4, 6), "HHS", "HHH"),
        ((2, 5, 6), "HHH", "HHB"),
        ((5, 5, 6), "HSH", "HHS"),  # forced anyway
    ],
)
def test_neutral_agents_hold_and_trade_all_that_is_wanted(start, decided, neutral):
    env_params = params()
    env_state = state(env_params, *start)
    bounds = worlds.bounds(0, 6)
    actions = jnp.array([VERBS.index(v) for v in decided])
    found = tactical.neutral(env_state, actions, bounds, env_params)
    assert "".join(VERBS[a] for a in found.tolist()) == neutral
    replaced = actions.at[2].set(found[2])
    order = tactical.compose(env_state, replaced, bounds, env_params)
    assert order.trade == order.wanted


def test_small_works_an_order_that_the_other_verbs_give_whole():
    """With lots of 4 a position is desired by fours; SMALL trades one contract, LARGE all."""
    env_params = params(lots_small=4, lots_large=4, max_contracts=4)
    bounds = worlds.bounds(0, 4)
    for execution, trade in (("b", 1), ("B", 4), ("s", 0), ("H", 0)):
        actions = jnp.array([VERBS.index(v) for v in "bH" + execution])
        env_state = state(env_params, 0, 0, 4)
        assert tactical.compose(env_state, actions, bounds, env_params).trade == trade


@pytest.mark.parametrize(("work", "path"), [(False, [3, 6, 6]), (True, [1, 2, 3])])
def test_follow_trades_at_once_or_one_by_one(work, path):
    env_params = params()
    bounds = worlds.bounds(0, 6)
    env_state, seen = state(env_params, 0, 0, 6), []
    for _ in path:
        actions = tactical.follow(env_state, jnp.int32(6), jnp.bool_(work), env_params)
        order = tactical.compose(env_state, actions, bounds, env_params)
        env_state = env_state.replace(
            position=env_state.position + order.trade, controls=order.controls
        )
        seen.append(int(env_state.position))
    assert seen == path
