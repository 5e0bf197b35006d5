"""Attribution: counterfactual runs are what they say, and gains are paired by session."""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import account, tactical
from gm_jax.report import policies
from gm_jax.report.attribution import contributions, difference
from gm_jax.report.backtest import backtest
from tests.mappo.problems import planted_setup


pytestmark = pytest.mark.usefixtures("quick_compiler")


SPAN = (276, 276 * 22)


def run(policy, data, team=tactical):
    setup = planted_setup(market_bars=12_000)
    args = (setup.loaded.bars, SPAN, setup.market, setup.params, team)
    return backtest(policy, data, *args)


def attribute(policy, data, team=tactical):
    setup = planted_setup(market_bars=12_000)
    session = setup.loaded.bars.session
    return contributions(policy, data, session, SPAN, setup.market, setup.params, team, seed=0)


def busy(key, state, market, params, team):
    """Decide at random, but seldom: positions last."""
    drawn = policies.random(key, state, market, params, team)
    return jnp.where(state.t % 30 == 0, drawn, drawn.at[:2].set(0))


def holding(contracts, state, market, params, team):
    """Hold so many contracts by the team's own verbs."""
    return team.follow(state, contracts, jnp.bool_(False), params)


KEY = jax.random.key(5)


def test_each_counterfactual_is_the_backtest_of_that_policy():
    found = attribute(busy, KEY)
    team = run(busy, KEY)

    def without(agent, instead):
        def policy(key, state, market, params, team):
            actions = busy(key, state, market, params, team)
            return actions.at[agent].set(instead(actions, state, market, params))

        return run(policy, KEY)

    def at_once(actions, state, market, params):
        bounds = account.bounds(state, market, params)
        wanted = tactical.compose(state, actions, bounds, params).wanted
        return jnp.where(wanted > 0, 2, jnp.where(wanted < 0, 4, 0))

    def hold(*_):
        return 0

    cases = [("tactical", 0, "neutral", hold), ("risk", 1, "neutral", hold)]
    cases += [("execution", 2, "hold", hold), ("execution", 2, "neutral", at_once)]
    for agent, index, how, instead in cases:
        other = without(index, instead)
        gain = (team.final_equity - other.final_equity) / 100
        assert found[agent][how]["net_pnl"] == pytest.approx(gain, abs=1e-6), (agent, how)
    assert len({found[agent][how]["net_pnl"] for agent, _, how, _ in cases}) > 2


def test_random_legal_actions_of_one_agent_leave_the_others_alone():
    found = attribute(holding, jnp.int32(4))
    assert found["tactical"]["neutral"]["net_pnl"] == found["tactical"]["hold"]["net_pnl"] != 0
    assert found["risk"]["neutral"]["net_pnl"] == 0  # it holds anyway
    assert found["execution"]["neutral"]["net_pnl"] == 0  # it trades at once anyway
    assert found["risk"]["random"]["net_pnl"] != 0


@pytest.mark.parametrize("agent", [2, *(pytest.param(x, marks=pytest.mark.slow) for x in (0, 1))])
def test_an_agent_whose_action_goes_nowhere_contributes_nothing(agent):
    def disconnected(state, actions, bounds, params):
        neutral = tactical.neutral(state, actions, bounds, params)
        return tactical.compose(state, actions.at[agent].set(neutral[agent]), bounds, params)

    team = ModuleType("disconnected")
    vars(team).update(vars(tactical) | {"compose": disconnected})
    found = attribute(busy, KEY, team)
    for how, figures in found[tactical.AGENTS[agent]].items():
        assert figures["net_pnl"] == 0, how
        assert figures["net_pnl_ci95"] == figures["sharpe_ratio_ci95"] == (0, 0)
    others = [name for i, name in enumerate(tactical.AGENTS) if i not in (agent, 0)]
    assert agent == 0 or any(found[name]["random"]["net_pnl"] != 0 for name in others)


def test_gains_are_paired():
    """Two accounts share wild sessions and differ by 100 a session: the difference is certain."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 100_000, 60)
    without = 10_000_000 + np.append(0, np.cumsum(shared))
    team = without + np.append(0, np.cumsum(rng.normal(10_000, 2_000, 60)))
    found = difference(team, without, enough=True)
    assert found["net_pnl"] == pytest.approx((team[-1] - without[-1]) / 100)
    low, high = found["net_pnl_ci95"]
    assert 0 < low < found["net_pnl"] < high
    # the shared part alone would move sixty sessions by far more
    assert high - low < 0.2 * 2 * 1.96 * shared.std() * 60**0.5 / 100
    assert found["sharpe_ratio_ci95"][0] > 0
    mirrored = difference(without, team, enough=True)
    assert mirrored["net_pnl_ci95"] == pytest.approx((-high, -low))


def test_too_few_sessions_have_no_interval_and_an_account_at_rest_has_no_ratio():
    rest = np.full(31, 1e7)
    moving = 1e7 + np.arange(31.0) ** 2 * 1_000
    few = difference(moving[:11], rest[:11], enough=False)
    assert few["net_pnl"] == 1_000
    assert few["net_pnl_ci95"] is few["sharpe_ratio"] is few["sharpe_ratio_ci95"] is None
    found = difference(moving, rest, enough=True)
    returns = moving[1:] / moving[:-1] - 1
    assert found["sharpe_ratio"] == pytest.approx(252**0.5 * returns.mean() / returns.std(ddof=1))
