"""Backtest: one account that runs through its whole split, holes and rolls included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env import account, core
from gm_jax.env.ops import select
from gm_jax.env.team import Team, start
from gm_jax.env.types import Array, EnvParams, Market, State
from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.report.policies import Policy


_CHUNK = 4096  # spans are padded to whole chunks, so that few lengths need a compilation
_WRAP = 2**31  # cents; no bar moves an account that far, an int32 that overflows jumps by 2^32
_OUT_OF_RANGE = (
    "The ledger does not add up: the account left the range of int32 cents ($21 million). "
    "Set a smaller start_equity_usd or max_contracts."
)
CLOSED = ("", "drawdown limit", "ruin", "margin call")


class Curves(NamedTuple):
    """What many accounts did, M of them over n bars."""

    equity: np.ndarray  # [M, n + 1] i64 cents, see `Ledger.curve`
    position: np.ndarray  # [M, n] i32 contracts, at the close


@dataclass(frozen=True)
class Ledger:
    """What one account did, a row per bar of its span; money in cents.

    A row holds the account at the bar's close, the decisions taken then, and what came of them by
    the next close (for the last row: closing the position at that close).
    """

    time: np.ndarray  # [n] i64, ns UTC
    session: np.ndarray  # [n] i64
    actions: np.ndarray  # [n, A] i32
    position: np.ndarray  # [n] i32, contracts
    target: np.ndarray  # [n] i32, the position that the order aims at
    equity: np.ndarray  # [n] i64, at the close
    gross: np.ndarray  # [n] i64
    commission: np.ndarray  # [n] i64
    spread: np.ndarray  # [n] i64
    impact: np.ndarray  # [n] i64
    roll_cost: np.ndarray  # [n] i64, of which
    traded: np.ndarray  # [n] i32, contracts, orders and stops together
    closed: np.ndarray  # [n] i32, why the account takes no more risk
    start_equity: int
    final_equity: int

    @property
    def cost(self) -> np.ndarray:
        """All costs, [n] cents."""
        return self.commission + self.spread + self.impact

    @property
    def curve(self) -> np.ndarray:
        """Equity at each close and, at the end, after closing the position, [n + 1] cents."""
        return np.append(self.equity, self.final_equity)

    @staticmethod
    def join(ledgers: Sequence[Ledger]) -> Ledger:
        """Return the ledger of accounts that follow each other, each with the equity of the last.

        Raises:
            UserError: they do not add up.
        """
        columns = [f.name for f in fields(Ledger) if not f.name.endswith("_equity")]
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(ledger, name) for ledger in ledgers]) for name in columns
        }
        joined["start_equity"] = ledgers[0].start_equity
        joined["final_equity"] = ledgers[-1].final_equity
        return Ledger(**joined).check()

    def closed_by(self) -> tuple[str, int] | None:
        """Return why and from which row on the account is closed to the end, if it is.

        One of joined accounts that was closed while the next went on does not count.
        """
        row = int(np.append(0, np.flatnonzero(self.closed == 0) + 1)[-1])
        return (CLOSED[self.closed[row]], row) if row < len(self.closed) else None

    def check(self) -> Ledger:
        """Return the ledger if start + gross − costs = equity holds on every row, to the cent.

        Raises:
            UserError: it does not: the account left the range of int32 cents.
        """
        equity = self.start_equity + np.cumsum(self.gross - self.cost)
        if not np.array_equal(equity[:-1], self.equity[1:]) or equity[-1] != self.final_equity:
            raise UserError(_OUT_OF_RANGE)
        return self


def backtest(
    policy: Policy,
    data: Any,
    bars: Bars,
    span: tuple[int, int],
    market: Market,
    params: EnvParams,
    team: Team,
) -> Ledger:
    """Run one account through the span and close it at the last close, with costs.

    Args:
        policy: what decides, see policies.py.
        data: its pytree.
        bars: the history, for times and sessions.
        span: half-open range of bars; the first decision is taken at its first close.
        market: the same bars on the device.
        params: of the environment.
        team: how decisions become orders.
    """
    first, count = span[0], span[1] - span[0]
    run = partial(_run, policy, team, _padded(count))
    rows, final = jax.device_get(run(data, jnp.int32(first), jnp.int32(count), market, params))
    return _ledger(jax.tree.map(lambda x: x[:count], rows), final, bars[slice(*span)], params)


def backtest_each(
    policy: Policy,
    data: Any,
    bars: Bars,
    span: tuple[int, int],
    market: Market,
    params: EnvParams,
    team: Team,
) -> list[Ledger]:
    """Return the ledgers of accounts side by side; every leaf of `data` has a leading axis.

    Args as of `backtest`.
    """
    first, count = span[0], span[1] - span[0]
    run = partial(_rows, policy, team, _padded(count), 0, None)
    rows, final = jax.device_get(run(data, jnp.int32(first), jnp.int32(count), market, params))

    def ledger(member: int) -> Ledger:
        mine = jax.tree.map(lambda x: x[member, :count], rows)
        return _ledger(mine, final[member], bars[slice(*span)], params)

    return [ledger(member) for member in range(len(final))]


def backtest_many(
    policy: Policy,
    data: Any,
    axes: Any,
    span: tuple[int, int],
    market: Market,
    params: EnvParams,
    team: Team,
    market_axes: Any = None,
) -> Curves:
    """Return the equity and the positions of many accounts side by side.

    Args:
        policy: what decides.
        data: its pytree, with a leading axis where `axes` says 0.
        axes: as `in_axes` of vmap; hashable.
        span: half-open range of bars.
        market: bars on the device.
        params: of the environment.
        team: how decisions become orders.
        market_axes: which leaves of the market have a leading axis, as `axes`.

    Raises:
        UserError: an account left the range of int32 cents.
    """
    count = span[1] - span[0]
    run = partial(_curves, policy, team, _padded(count), axes, market_axes)
    equity, position, final = jax.device_get(
        run(data, jnp.int32(span[0]), jnp.int32(count), market, params)
    )
    curves = np.append(equity[:, :count], final[:, None], axis=1).astype(np.int64)
    if np.abs(np.diff(curves)).max(initial=0) > _WRAP:
        raise UserError(_OUT_OF_RANGE)
    return Curves(curves, position[:, :count])


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _rows(
    policy: Policy,
    team: Team,
    length: int,
    axes: Any,
    market_axes: Any,
    data: Any,
    first: Array,
    count: Array,
    market: Market,
    params: EnvParams,
) -> tuple[dict[str, Any], Array]:
    def one(data: Any, market: Market) -> tuple[dict[str, Any], Array]:
        return _run(policy, team, length, data, first, count, market, params)

    return jax.vmap(one, in_axes=(axes, market_axes))(data, market)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _curves(
    policy: Policy,
    team: Team,
    length: int,
    axes: Any,
    market_axes: Any,
    data: Any,
    first: Array,
    count: Array,
    market: Market,
    params: EnvParams,
) -> tuple[Array, Array, Array]:
    rows, final = _rows(policy, team, length, axes, market_axes, data, first, count, market, params)
    return rows["equity"], rows["position"], final


def _padded(count: int) -> int:
    return -(-count // _CHUNK) * _CHUNK


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    policy: Policy,
    team: Team,
    length: int,
    data: Any,
    first: Array,
    count: Array,
    market: Market,
    params: EnvParams,
) -> tuple[dict[str, Any], Array]:
    """Scan `length` bars, of which `count` count; return the rows and the final equity."""

    def body(state: State, i: Array) -> tuple[State, dict[str, Any]]:
        actions = policy(data, state, market, params, team)
        after, outcome = core.step(state, actions, market, params, team)
        last = i >= count - 1
        fill = select(last, account.close_out(state, market, params), outcome.fill)
        row = {
            "actions": actions,
            "position": state.position,
            "target": outcome.target,
            "equity": state.equity,
            "fill": fill,
            "after": jnp.where(last, 0, after.position),
            "closed": state.closed,
        }
        return select(last, state, after), row

    state, rows = jax.lax.scan(body, start(first, params, team), jnp.arange(length))
    return rows, state.equity - account.close_out(state, market, params).cost


def _ledger(rows: dict[str, Any], final: np.ndarray, bars: Bars, params: EnvParams) -> Ledger:
    fill = rows["fill"]
    wide = {
        k: np.asarray(getattr(fill, k), dtype=np.int64)
        for k in ("gross", "commission", "spread", "impact", "roll_cost")
    }
    # a stop trades after the order: both count
    stopped = rows["position"] + fill.traded - rows["after"]
    return Ledger(
        time=bars.time,
        session=bars.session,
        actions=rows["actions"],
        position=rows["position"],
        target=rows["target"],
        equity=rows["equity"].astype(np.int64),
        **wide,
        traded=np.abs(fill.traded) + np.abs(stopped),
        closed=rows["closed"],
        start_equity=int(params.start_equity),
        final_equity=int(final),
    ).check()
