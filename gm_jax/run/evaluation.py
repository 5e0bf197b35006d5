"""What a team is worth on a split: its backtest beside baselines and, where known, the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.core import Team
from gm_jax.env.types import Array, EnvParams, Market, State
from gm_jax.mappo.types import Config, Networks
from gm_jax.mappo.validation import greedy
from gm_jax.report import policies
from gm_jax.report.attribution import contributions
from gm_jax.report.backtest import Ledger, backtest, backtest_many
from gm_jax.report.metrics import session_closes, session_returns, sharpe_ratio, summarise
from gm_jax.run.setup import Setup
from gm_jax.settings import Settings


BANDS = np.arange(0, 0.9, 0.1)  # of the oracle's hysteresis


@lru_cache
def team_policy(config: Config) -> policies.Policy:
    """Return the greedy team as a policy; one object per config, so that it compiles once."""

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


def fit_oracle(setup: Setup) -> policies.Bayes | None:
    """Choose the oracle's band, sizes and pace by its Sharpe ratio on the training split.

    The Bayes filter itself has nothing to fit. None where no filter is known, or where training is
    too short for a Sharpe ratio.
    """
    world, span = setup.loaded.world, setup.split.train
    if world is None or world.belief is None:
        return None
    sizes = list(_sizes(world.below, setup.settings))
    rules = itertools.product(BANDS, sizes, (False, True))
    bands, pairs, work = zip(*rules, strict=True)
    high, low = np.array(pairs).T
    bayes = policies.Bayes(
        belief=jnp.asarray(world.belief, dtype=jnp.float32),
        band=jnp.asarray(bands, dtype=jnp.float32),
        high=jnp.asarray(high, dtype=jnp.int32),
        low=jnp.asarray(low, dtype=jnp.int32),
        work=jnp.asarray(work),
    )
    axes = bayes.replace(belief=None, band=0, high=0, low=0, work=0)
    team = setup.system.team
    curves = backtest_many(policies.oracle, bayes, axes, span, setup.market, setup.params, team)
    start, session = int(setup.params.start_equity), setup.loaded.bars.session[slice(*span)]
    closes = session_closes(start, curves, session)
    scores = [sharpe_ratio(returns) for returns in session_returns(closes)]
    if all(score is None for score in scores):
        return None
    best = int(np.argmax([-np.inf if s is None else s for s in scores]))
    return bayes.replace(
        band=bayes.band[best],
        high=bayes.high[best],
        low=bayes.low[best],
        work=bayes.work[best],
    )


def _sizes(below: str, settings: Settings) -> Iterator[tuple[int, int]]:
    """Yield what the oracle may hold while its belief is high, and while it is low, contracts.

    Whole numbers of small lots: `follow` reaches each from each.
    """
    small = settings.lots_small
    for high in range(small, settings.max_contracts + 1, small):
        if below == "less":
            yield from ((high, low) for low in range(0, high + 1, small))
        else:
            yield high, -high if below == "short" and settings.allow_short else 0


def _why_none(setup: Setup) -> str:
    """Say why there is no oracle."""
    world = setup.loaded.world
    if world is None:
        return "the best policy is known on generated markets only"
    if world.flat_is_best:
        return "nothing can be earned here: flat is best"
    if world.belief is None:
        return "no best policy is known for this market"
    return "the training split is too short to choose its band and size"


def evaluate(
    setup: Setup, networks: Networks, span: tuple[int, int], oracle: policies.Bayes | None
) -> tuple[dict[str, Any], dict[str, Ledger]]:
    """Backtest the team, the baselines and the oracle on one span under the same costs.

    Returns:
        The report of the span and the ledgers by name, `team` first.
    """
    settings, most = setup.settings, setup.settings.max_contracts
    team = team_ledger(setup, networks, span)
    report = summarise(team, most)
    notional = setup.loaded.bars.close[span[0]] * settings.point_value_usd
    unlevered = round(settings.start_equity_usd / notional)
    unlevered = min(max(unlevered, settings.lots_small), most)
    lot = settings.lots_small
    same = lot * min(round(report["exposure"] * most / lot), most // lot)  # what verbs can reach
    run = partial(_run, setup, span)
    ledgers = {
        "team": team,
        "flat": run(policies.flat, jnp.int32(0)),
        "buy_and_hold": run(policies.buy_and_hold, jnp.int32(unlevered)),
        "buy_and_hold_same_exposure": run(policies.buy_and_hold, jnp.int32(same)),
        "random": run(policies.random, jax.random.key(settings.seed)),
    }
    if oracle is not None:
        ledgers["oracle"] = run(policies.oracle, oracle)
    reports = {name: summarise(ledger, most) for name, ledger in ledgers.items()}
    baselines = {k: v for k, v in reports.items() if k not in ("team", "oracle")}
    best_known = reports.get("oracle", {}).get("sharpe_ratio")
    mine = report["sharpe_ratio"]
    share = mine / best_known if mine is not None and (best_known or 0) > 0 else None
    report |= {
        "baselines": baselines,
        "oracle_sharpe": best_known,
        "oracle_share": share,
        "oracle_reason": None if oracle is not None else _why_none(setup),
        "agent_contributions": contributions(
            team_policy(setup.config),
            networks.actor,
            setup.loaded.bars.session,
            span,
            setup.market,
            setup.params,
            setup.system.team,
            settings.seed,
        ),
    }
    return report, ledgers
