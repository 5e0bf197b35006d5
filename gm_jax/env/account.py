"""The account: an order fills at the next open, the position is marked at the next close.

Everything is integer cents and ticks; only the impact passes through float32, one multiplication
at a time, so that any IEEE machine gets the same cent.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from gm_jax.env.types import (
    CLOSE,
    DRAWDOWN,
    FLAGS,
    GAP,
    HIGH,
    HOLE,
    LOW,
    MARGIN_CALL,
    OPEN,
    OPEN_ACCOUNT,
    REGULAR,
    ROLL,
    RUIN,
    SESSION_START,
    TRADED,
    Array,
    Bounds,
    EnvParams,
    Fill,
    Market,
    Order,
    State,
)


def leverage_cap(equity: Array, price: Array, params: EnvParams) -> Array:
    """Return the most contracts a new position may have: ⌊leverage · equity / notional⌋.

    Args:
        equity: cents.
        price: ticks.
        params: of the environment.
    """
    notional = jnp.float32(price * params.tick_cents)
    cap = jnp.floor(params.max_leverage * jnp.float32(equity) / notional)
    return jnp.int32(jnp.clip(cap, 0, jnp.float32(params.max_contracts)))


def bounds(state: State, market: Market, params: EnvParams) -> Bounds:
    """Return the positions that the limits admit: leverage stops increases, never forces a sale."""
    bar = market.bars[state.t]
    cap = leverage_cap(state.equity, bar[CLOSE], params)
    least, most = _mandate(market.mandate[state.t], params)
    notional = jnp.float32(bar[CLOSE] * params.tick_cents)
    return Bounds(
        low=jnp.where(params.allow_short, -jnp.maximum(cap, -state.position), 0),
        high=jnp.maximum(cap, state.position),
        least=least,
        most=most,
        flat=state.halted | state.closing | (state.closed != OPEN_ACCOUNT),
        unit=jnp.float32(state.equity) / notional,
        opens=(bar[FLAGS] & SESSION_START) != 0,
        signals=market.signals[state.t],
    )


def _mandate(shares: Array, params: EnvParams) -> tuple[Array, Array]:
    """Return least and most contracts from shares of the maximum, [2] f32, rounded to flat."""
    slack = 1e-4  # a third of six is two, whatever float32 makes of a third
    largest = jnp.float32(params.max_contracts)
    least, most = (jnp.int32(jnp.floor(jnp.abs(share) * largest + slack)) for share in shares)
    return jnp.where(params.allow_short, -least, 0), most


def order_cost(
    contracts: Array, spread_ticks: Array, impact_ticks: Array, params: EnvParams
) -> tuple[Array, Array, Array]:
    """Return commission, half the spread and impact of one order in cents, each rounded up.

    impact = ⌈Y · σ20 · √share · contracts⌉ with share = contracts · price / mean notional20.

    Args:
        contracts: size of the order, any sign.
        spread_ticks: width of the spread.
        impact_ticks: σ20 · √(price / mean notional20), ticks.
        params: of the environment.

    Source: square-root law of impact, Almgren et al. (2005).
    """
    size = jnp.abs(contracts)
    commission = size * params.commission
    spread = (size * spread_ticks * params.tick_cents + 1) // 2
    quantity = jnp.float32(size)
    impact = jnp.ceil((params.impact * impact_ticks) * (quantity * jnp.sqrt(quantity)))
    return commission, spread, jnp.int32(impact)


def stop_price(position: Array, fill: Array, atr: Array, params: EnvParams) -> Array:
    """Return the stop of a position opened or enlarged at `fill` (ticks); 0 = none."""
    distance = jnp.int32(jnp.maximum(jnp.rint(params.stop_atr * atr), 1))
    wanted = (params.stop_atr > 0) & (position != 0)
    return jnp.where(wanted, fill - jnp.sign(position) * distance, 0)


class _Trades(struct.PyTreeNode):
    """What happens to a position inside one bar, in contracts, ticks and contract-ticks."""

    order: Array  # i32, contracts of the team's order that filled, signed
    gap_exit: Array  # i32, contracts a stop sold at the open
    stop_exit: Array  # i32, contracts a stop sold inside the bar
    carried: Array  # i32, contracts carried over a roll
    position: Array  # i32, at the close
    stop: Array  # i32, ticks, at the close
    gross: Array  # i32, contracts × ticks


def _trade(state: State, order: Order, bar: Array, atr: Array, params: EnvParams) -> _Trades:
    """Carry the position through a bar: gap, stop or order at the open, stop inside, mark."""
    traded, holey, rolls = (bar[FLAGS] & flag != 0 for flag in (TRADED, HOLE, ROLL))
    held = state.position
    gap = jnp.where(rolls, 0, bar[GAP])
    stop = jnp.where(rolls & (state.stop != 0), state.stop + bar[GAP], state.stop)

    beyond = jnp.where(held > 0, bar[OPEN] <= stop, bar[OPEN] >= stop)
    gap_exit = jnp.where(beyond & (stop != 0) & traded, -held, 0)
    filled = jnp.where(traded & (gap_exit == 0) & jnp.logical_not(holey), order.trade, 0)
    position = held + gap_exit + filled

    grown = (jnp.abs(position) > jnp.abs(held)) | (position * held < 0)
    stop = jnp.where(grown, stop_price(position, bar[OPEN], atr, params), stop)
    stop = jnp.where(position == 0, 0, stop)
    hit = jnp.where(position > 0, bar[LOW] <= stop, bar[HIGH] >= stop) & (stop != 0) & traded
    exit_price = jnp.where(hit, stop, bar[CLOSE])
    both = jnp.minimum(jnp.abs(held), jnp.abs(position))
    return _Trades(
        order=filled,
        gap_exit=gap_exit,
        stop_exit=jnp.where(hit, -position, 0),
        carried=jnp.where(rolls & (position * held > 0), both, 0),
        position=jnp.where(hit, 0, position),
        stop=jnp.where(hit, 0, stop),
        gross=held * gap + position * (exit_price - bar[OPEN]),
    )


def advance(state: State, order: Order, market: Market, params: EnvParams) -> tuple[State, Fill]:
    """Carry the account from the close of bar t to the close of bar t + 1.

    1. The gap goes to the position held; at a roll it is nobody's, and both sides' costs are paid
       for what is carried past the open, whatever the bar's volume.
    2. A stop beyond which the bar opens fills at the open; the order then lapses.
    3. Otherwise the order fills at the open, unless the bar has no volume or follows a hole.
    4. A stop inside the bar fills at its price, as an order of its own.
    5. What is left is marked at the close, then the limits are checked. A daily-loss halt ends with
       the session, but what it could not close in it is closed first.
    """
    bar = market.bars[state.t + 1]
    trades = _trade(state, order, bar, market.atr[state.t], params)
    fill = _fill(trades, bar, market.impact[state.t], params)
    equity = state.equity + fill.gross - fill.cost
    opens = (bar[FLAGS] & SESSION_START) != 0
    session_equity = jnp.where(opens, state.equity, state.session_equity)
    state = state.replace(
        t=state.t + 1,
        steps=state.steps + 1,
        position=trades.position,
        stop=trades.stop,
        equity=equity,
        peak=jnp.maximum(state.peak, equity),
        session_equity=session_equity,
        halted=(state.halted & jnp.logical_not(opens))
        | below(equity, session_equity, params.daily_loss),
        closing=(state.closing | (state.halted & opens)) & (trades.position != 0),
    )
    return state.replace(closed=closing_reason(state, bar[CLOSE], params)), fill


def _fill(trades: _Trades, bar: Array, impact_ticks: Array, params: EnvParams) -> Fill:
    """Return what the bar's trades earned and cost; each is an order of its own."""
    exits = trades.gap_exit + trades.stop_exit  # never both
    width = spread_width(bar, params)
    order, closing, rolling = (
        order_cost(contracts, width, impact_ticks, params)
        for contracts in (trades.order, exits, trades.carried)
    )
    # what is carried over a roll is sold and bought
    commission, spread, impact = (
        a + b + 2 * c for a, b, c in zip(order, closing, rolling, strict=True)
    )
    return Fill(
        traded=trades.order,
        gross=trades.gross * params.tick_cents,
        commission=commission,
        spread=spread,
        impact=impact,
        order_cost=sum(order[1:], order[0]),
        roll_cost=2 * sum(rolling[1:], rolling[0]),
        stopped=exits != 0,
    )


def spread_width(bar: Array, params: EnvParams) -> Array:
    """Return the width of the spread in a bar, ticks."""
    regular = (bar[FLAGS] & REGULAR) != 0
    return jnp.where(regular, params.spread_regular, params.spread_other)


def below(equity: Array, reference: Array, loss: Array) -> Array:
    """Return whether equity is under the reference (cents) less a share of it."""
    return jnp.float32(equity) < jnp.float32(reference) * (1 - loss)


def closing_reason(state: State, price: Array, params: EnvParams) -> Array:
    """Return why the account takes no more risk (0 = it does); the first reason stays.

    Ruin: equity ≤ ruin · start. Margin call: equity < margin · notional. Drawdown: equity below
    (1 − limit) · peak.

    Args:
        state: account after marking.
        price: its mark, ticks.
        params: of the environment.
    """
    equity = jnp.float32(state.equity)
    notional = jnp.float32(jnp.abs(state.position) * price * params.tick_cents)
    ruined = equity <= jnp.float32(params.start_equity) * params.ruin
    called = equity < params.maintenance_margin * notional
    drawn = below(state.equity, state.peak, params.max_drawdown)
    reason = jnp.select(
        [ruined, called, drawn],
        [jnp.int32(RUIN), jnp.int32(MARGIN_CALL), jnp.int32(DRAWDOWN)],
        jnp.int32(OPEN_ACCOUNT),
    )
    return jnp.where(state.closed == OPEN_ACCOUNT, reason, state.closed)


def close_out(state: State, market: Market, params: EnvParams) -> Fill:
    """Return the fill that closes the position at the close of the last bar, with costs."""
    width = spread_width(market.bars[state.t], params)
    zero = jnp.zeros_like(state.position)
    commission, spread, impact = order_cost(state.position, width, market.impact[state.t], params)
    return Fill(
        traded=-state.position,
        gross=zero,
        commission=commission,
        spread=spread,
        impact=impact,
        order_cost=commission + spread + impact,
        roll_cost=zero,
        stopped=jnp.zeros_like(state.halted),
    )
