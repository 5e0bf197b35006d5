"""What a team is worth on a split: its backtest beside baselines and, where known, the oracle."""

from __future__ import annotations

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
from gm_jax.report.backtest import Ledger, backtest, backtest_many
from gm_jax.report.metrics import sharpe_ratio, summarise
from gm_jax.run.setup import Setup


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
    """Choose the oracle's band and size by its Sharpe ratio on the training split.

    The Bayes filter itself has nothing to fit. None where no filter is known, or where training is
    too short for a Sharpe ratio.
    """
    belief = setup.loaded.belief
    if belief is None:
        return None
    most = setup.settings.max_contracts
    bands, sizes = np.meshgrid(BANDS, np.arange(1, most + 1))
    bayes = policies.Bayes(
        belief=jnp.asarray(belief, dtype=jnp.float32),
        band=jnp.asarray(bands.ravel(), dtype=jnp.float32),
        size=jnp.asarray(sizes.ravel(), dtype=jnp.int32),
    )
    equity = backtest_many(
        policies.oracle,
        bayes,
        bayes.replace(belief=None, band=0, size=0),
        setup.split.train,
        setup.market,
        setup.params,
        setup.system.team,
    )
    session = setup.loaded.bars.session[slice(*setup.split.train)]
    closes = equity[:, np.flatnonzero(np.append(np.diff(session) != 0, True))].astype(np.float64)
    scores = [sharpe_ratio(row[1:] / row[:-1] - 1) for row in closes]
    if all(score is None for score in scores):
        return None
    best = int(np.argmax([-np.inf if s is None else s for s in scores]))
    return bayes.replace(band=bayes.band[best], size=bayes.size[best])


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
    same = round(report["exposure"] * most)
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
    }
    return report, ledgers
