"""Roles earn their place: each agent's contribution on a world made for it, after training.

One seed each, chosen for an early and clear answer; benchmarks/learning.md tells of other seeds.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from gm_jax.env import tactical
from gm_jax.mappo import learner
from gm_jax.report import policies
from gm_jax.report.attribution import contributions
from gm_jax.report.backtest import backtest
from gm_jax.report.metrics import summarise
from gm_jax.run import evaluation
from gm_jax.run.oracles import fit_oracle
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import TACTICAL


MADE = {"num_episodes": 40, "ent_coef": 0.01, "split": (0.6, 0.1, 0.3)}
# world -> agent it is made for, figure that agent moves, seed, settings
WORLDS = {
    "planted": ("tactical", "sharpe_ratio", 0, {}),
    "risk_only": ("risk", "sharpe_ratio", 1, {}),
    "execution_only": (
        "execution",
        "net_pnl",
        2,
        {"lots_small": 3, "lots_large": 3, "max_contracts": 3, "impact": 2.0}
        | {"initial_neutral": 0.97},
    ),
}


def trained(market, seed, changes):
    """Train a team on its world; return its setup and the actor that validation chose."""
    settings = TACTICAL.settings.replace(**(TACTICAL.quick | MADE | changes), seed=seed)
    source = Source(market=market, seed=seed)
    setup = prepare(TACTICAL, settings, load(source, settings, TACTICAL.minutes))
    state = learner.init_state(jax.random.key(seed), setup.market, setup.params, setup.config)
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    state, _ = learner.train(
        state, jnp.int32(settings.num_episodes), *arguments, config=setup.config
    )
    return setup, learner.chosen(state).actor


def contribution(setup, actor, agent, team=tactical):
    """Return the agent's contribution against its neutral on the test split."""
    policy, session = evaluation.team_policy(setup.config), setup.loaded.bars.session
    span, seed = setup.split["test"], setup.settings.seed
    found = contributions(policy, actor, session, span, setup.market, setup.params, team, seed)
    return found[agent]["neutral"]


def without(agent):
    """Return the team with the wire from that agent's action cut: it counts as neutral."""

    def compose(state, actions, bounds, params):
        neutral = tactical.neutral(state, actions, bounds, params)
        return tactical.compose(state, actions.at[agent].set(neutral[agent]), bounds, params)

    team = ModuleType("disconnected")
    vars(team).update(vars(tactical) | {"compose": compose})
    return team


@pytest.mark.slow
def test_learns_to_buy_what_has_fallen():
    """At least 75 % of the Kalman filter's after-cost Sharpe out of sample, long-only."""
    setup, actor = trained("mean_reverting", 0, {"num_episodes": 32, "ent_coef": 0.003})
    span, oracle = setup.split["test"], fit_oracle(setup)
    policy = evaluation.team_policy(setup.config)
    most = setup.settings.max_contracts
    args = (setup.loaded.bars, span, setup.market, setup.params, tactical)
    team, best = (
        summarise(backtest(*who, *args), most)["sharpe_ratio"]
        for who in ((policy, actor), (policies.oracle, oracle))
    )
    assert best > 4
    assert team > 0.75 * best


@pytest.mark.slow
@pytest.mark.parametrize("market", WORLDS)
@pytest.mark.usefixtures("optimised")
def test_an_agent_contributes_on_the_world_made_for_it(market):
    agent, figure, seed, changes = WORLDS[market]
    setup, actor = trained(market, seed, changes)
    low, high = contribution(setup, actor, agent)[f"{figure}_ci95"]
    assert 0 < low < high
    cut = contribution(setup, actor, agent, without(tactical.AGENTS.index(agent)))
    assert cut[f"{figure}_ci95"] == (0, 0)  # the very test above fails without the action
