"""Attribution: what each agent adds, by runs in which it does something else.

Every run plays the same bars through the same environment, so gains are compared session by
session: noise that both runs share drops out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.team import Team
from gm_jax.env.types import EnvParams, Market
from gm_jax.report.backtest import backtest_many
from gm_jax.report.bootstrap import interval
from gm_jax.report.metrics import (
    MIN_SESSIONS,
    full_sessions,
    session_closes,
    session_returns,
    sharpe_ratios,
)
from gm_jax.report.policies import INSTEAD, Counterfactual, Policy, counterfactual


def contributions(
    policy: Policy,
    data: Any,
    session: np.ndarray,
    span: tuple[int, int],
    market: Market,
    params: EnvParams,
    team: Team,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return, by agent and by what it does instead, the team's figures minus those without it.

    Args:
        policy: the team's.
        data: its pytree.
        session: [T] i64, trade dates of the market's bars.
        span: half-open range of bars.
        market: bars on the device.
        params: of the environment.
        team: how decisions become orders.
        seed: of the random actions.
    """
    others = [(agent, how) for agent in range(len(team.AGENTS)) for how in range(len(INSTEAD))]
    agent, how = np.array([(-1, 0), *others]).T
    changed = Counterfactual(
        data, jnp.asarray(agent, jnp.int32), jnp.asarray(how, jnp.int32), jax.random.key(seed)
    )
    axes = changed.replace(data=None, agent=0, instead=0, key=None)
    curves, _ = backtest_many(counterfactual(policy), changed, axes, span, market, params, team)
    session = session[slice(*span)]
    closes = session_closes(int(params.start_equity), curves, session)
    enough = full_sessions(session) >= MIN_SESSIONS
    found: dict[str, dict[str, Any]] = {name: {} for name in team.AGENTS}
    for (agent_id, how_id), without in zip(others, closes[1:], strict=True):
        found[team.AGENTS[agent_id]][INSTEAD[how_id]] = difference(closes[0], without, enough)
    return found


def difference(team: np.ndarray, without: np.ndarray, enough: bool) -> dict[str, Any]:
    """Return net P&L (USD) and Sharpe ratio of one account minus another's, with 95 % intervals.

    The Sharpe ratio of an account that never trades counts as 0 here.

    Args:
        team: [sessions + 1] f64 cents, see `session_closes`.
        without: the same, of the other account.
        enough: whether there are sessions enough for a Sharpe ratio and for intervals.
    """
    gain = (np.diff(team) - np.diff(without)) / 100
    mine, theirs = session_returns(team), session_returns(without)

    def net_pnl(rows: np.ndarray) -> np.ndarray:
        return gain[rows].sum(axis=-1)

    def sharpe(rows: np.ndarray) -> np.ndarray:
        return sharpe_ratios(mine[rows]) - sharpe_ratios(theirs[rows])

    sessions = np.arange(len(gain))
    return {
        "net_pnl": float(net_pnl(sessions)),
        "net_pnl_ci95": interval(net_pnl, len(gain)) if enough else None,
        "sharpe_ratio": float(sharpe(sessions)) if enough else None,
        "sharpe_ratio_ci95": interval(sharpe, len(gain)) if enough else None,
    }
