"""What a team is worth on a split: its backtest beside baselines and, where known, the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from gm_jax.env.team import Team
from gm_jax.env.types import Array, EnvParams, Market, State
from gm_jax.mappo.types import Config, Networks
from gm_jax.mappo.validation import greedy
from gm_jax.market.regimes import REGIMES
from gm_jax.report import policies
from gm_jax.report.attribution import contributions
from gm_jax.report.backtest import Ledger, backtest
from gm_jax.report.breakdown import by_regime, by_year, episodes
from gm_jax.report.metrics import (
    MIN_SESSIONS,
    full_sessions,
    session_closes,
    session_returns,
    summarise,
)
from gm_jax.report.significance import deflated_sharpe
from gm_jax.run import trials
from gm_jax.run.baselines import baselines
from gm_jax.run.oracles import why_none
from gm_jax.run.setup import Setup


TARGET_ITERATIONS = 200  # within which the tactical target reward is to be reached


def team_policy(config: Config) -> policies.Policy:
    """Return the greedy team as a policy, in float32 as it is deployed, however it was trained."""
    return _team_policy(replace(config, precision="float32"))


@lru_cache
def _team_policy(config: Config) -> policies.Policy:
    """Return one object per config, so that it compiles once."""

    def policy(actor: Any, state: State, market: Market, params: EnvParams, team: Team) -> Array:
        del team
        return greedy(actor, state, market, params, config)

    return policy


def team_ledger(setup: Setup, networks: Networks, span: tuple[int, int]) -> Ledger:
    """Run the greedy team through a span."""
    return _run(setup, span, team_policy(setup.config), networks.actor)


def _run(setup: Setup, span: tuple[int, int], policy: policies.Policy, data: Any) -> Ledger:
    bars, team = setup.loaded.bars, setup.system.team
    return backtest(policy, data, bars, span, setup.market, setup.params, team)


def evaluate(
    setup: Setup, networks: Networks, span: tuple[int, int], oracle: policies.Bayes | None
) -> tuple[dict[str, Any], dict[str, Ledger]]:
    """Backtest the team, the baselines and the oracle on one span under the same costs.

    Returns:
        The report of the span and the ledgers by name, `team` first.
    """
    team = team_ledger(setup, networks, span)
    ledgers = {"team": team, **rivals(setup, team, span, oracle)}
    report = account_report(setup, team, span) | comparison(setup, ledgers)
    report["agent_contributions"] = agent_contributions(setup, networks, span)
    return report, ledgers


def rivals(
    setup: Setup, team: Ledger, span: tuple[int, int], oracle: policies.Bayes | None
) -> dict[str, Ledger]:
    """Backtest the baselines and, if there is one, the oracle on the span of a team's ledger."""
    run = partial(_run, setup, span)
    ledgers = baselines(setup, team, span)
    ledgers["random"] = run(policies.random, jax.random.key(setup.settings.seed))
    if oracle is not None:
        ledgers["oracle"] = run(policies.oracle, oracle)
    return ledgers


def agent_contributions(
    setup: Setup, networks: Networks, span: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Return what each agent adds to the team on a span, see `attribution.contributions`."""
    return contributions(
        team_policy(setup.config),
        networks.actor,
        setup.loaded.bars.session,
        span,
        setup.market,
        setup.params,
        setup.system.team,
        setup.settings.seed,
    )


def account_report(setup: Setup, ledger: Ledger, span: tuple[int, int]) -> dict[str, Any]:
    """Return everything that one account's ledger says, broken down by window, regime and year."""
    rewards = episodes(ledger, setup.episode_length)
    return {
        **summarise(ledger, setup.settings.max_contracts, interval=True),
        "episode_bars": min(setup.episode_length, len(ledger.equity)),
        "episode_rewards": rewards,
        "win_rate_episodes": float(np.mean(np.array(rewards) > 0)),
        "per_regime": by_regime(ledger, setup.regimes[slice(*span)], REGIMES),
        "unlabelled_bars": setup.unlabelled(span),
        "per_year": by_year(ledger),
    }


def comparison(setup: Setup, ledgers: dict[str, Ledger]) -> dict[str, Any]:
    """Return the figures of all but the team, and the team's share of the oracle's Sharpe ratio."""
    most, length = setup.settings.max_contracts, setup.episode_length
    reports = {
        name: summarise(ledger, most) | {"episode_reward": float(np.mean(episodes(ledger, length)))}
        for name, ledger in ledgers.items()
    }
    best_known = reports.get("oracle", {}).get("sharpe_ratio")
    mine = reports["team"]["sharpe_ratio"]
    return {
        "baselines": {k: v for k, v in reports.items() if k not in ("team", "oracle")},
        "oracle": reports.get("oracle"),
        "oracle_reason": None if "oracle" in ledgers else why_none(setup),
        "oracle_sharpe": best_known,
        "oracle_share": mine / best_known if mine is not None and (best_known or 0) > 0 else None,
    }


def luck(team: Ledger, tried: Sequence[trials.Trial] | None, split: str | None) -> dict[str, Any]:
    """Return how many trials there were on these bars, and the Sharpe ratio's chance beside them.

    Args:
        team: ledger of the team on the split.
        tried: every trial on the same bars, this one too; None where that is not known.
        split: its name; None where trials do not say what they came to on it.
    """
    few = full_sessions(team.session) < MIN_SESSIONS
    returns = session_returns(session_closes(team.start_equity, team.curve, team.session))
    return {
        "n_trials": None if tried is None else max(1, len(tried)),
        "deflated_sharpe": None
        if tried is None or split is None or few
        else deflated_sharpe(returns, trials.sharpes(tried, split)),
        "pbo": None,  # of sweeps
    }


def targets(
    setup: Setup, report: dict[str, Any], split: str, iterations: int
) -> dict[str, dict[str, Any]]:
    """Return the system's targets on a split: value, what is wanted, whether it is met.

    Args:
        setup: of the run.
        report: of the split.
        split: its name.
        iterations: that the team was trained for; the reward's target is one for TARGET_ITERATIONS.
    """
    settings, hold = setup.settings, report["baselines"]["buy_and_hold_same_exposure"]
    wanted = {
        "reward": (float(np.mean(report["episode_rewards"])), ">", settings.target_reward),
        "sharpe_ratio": (report["sharpe_ratio"], ">", settings.target_sharpe),
        "max_drawdown": (report["max_drawdown"], "<", settings.target_drawdown),
    }
    found = {}
    for name in setup.system.targets:
        value, sign, target = wanted[name]
        met = value is not None and (value > target if sign == ">" else value < target)
        found[name] = {"value": value, "target": f"{sign} {target:g}", "split": split, "met": met}
    if "reward" in found:
        found["reward"] |= {
            "target": f"{found['reward']['target']} within {TARGET_ITERATIONS} iterations",
            "met": found["reward"]["met"] and iterations <= TARGET_ITERATIONS,
            "unit": f"bp a window of {report['episode_bars']} bars",
            "iterations": iterations,
            "exposure": report["exposure"],
            "buy_and_hold_same_exposure": hold["episode_reward"],
        }
    return found
