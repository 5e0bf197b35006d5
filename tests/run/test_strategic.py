"""The strategic system end to end: real rolls, a whole report, worlds with a known answer."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gm_jax import cli
from gm_jax.env import direct
from gm_jax.env.types import CLOSE, GAP, OPEN
from gm_jax.mappo import learner
from gm_jax.report import policies
from gm_jax.report.attribution import contributions
from gm_jax.report.backtest import backtest
from gm_jax.report.metrics import summarise
from gm_jax.run import evaluation
from gm_jax.run.oracles import fit_oracle
from gm_jax.run.setup import prepare, static_config
from gm_jax.run.source import Source, load
from gm_jax.systems import STRATEGIC, TACTICAL
from tests.run.schema import BASELINES, REPORT


TINY = [
    *("--set", "hidden_sizes=[16,16]", "--set", "layer_norm=1", "--set", "num_envs=8"),
    *("--set", "episode_length=100", "--set", "rollout_length=50", "--set", "num_minibatches=2"),
    *("--set", "num_episodes=2", "--set", "num_epochs=1"),
]


def setup_of(source, **changes):
    settings = STRATEGIC.settings.replace(**(STRATEGIC.quick | changes), seed=source.seed)
    return prepare(STRATEGIC, settings, load(source, settings, STRATEGIC.minutes))


def trained(setup):
    """Train a team; return the networks that validation chose."""
    state = learner.init_state(
        jax.random.key(setup.settings.seed), setup.market, setup.params, setup.config
    )
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    done, total = 0, setup.settings.num_episodes
    while done < total:
        count = min(setup.config.interval, total - done)
        state, _ = learner.train(state, jnp.int32(count), *arguments, config=setup.config)
        done += count
    return learner.chosen(state)


def worth(setup, networks, agent):
    """Return an agent's contribution against its neutral on the test split."""
    policy, session = evaluation.team_policy(setup.config), setup.loaded.bars.session
    rest = (setup.market, setup.params, STRATEGIC.team, setup.settings.seed)
    span = setup.split.test
    return contributions(policy, networks.actor, session, span, *rest)[agent]["neutral"]


# -- real bars ------------------------------------------------------------------------------------


def test_a_position_carried_over_each_real_roll_earns_nothing_and_pays(shared_data):
    """Two contracts held over three and a half years: the account by hand on every bar."""
    setup = setup_of(Source(data=str(shared_data / "NQ - 30 min - ETH.csv")))
    bars, span = setup.loaded.bars, (setup.warmup, len(setup.loaded.bars))
    params = setup.params.replace(
        max_drawdown=jnp.float32(1), daily_loss=jnp.float32(1), max_leverage=jnp.float32(100)
    )
    plan = jnp.full(len(bars), 2, jnp.int32)
    ledger = backtest(policies.planned, plan, bars, span, setup.market, params, direct)
    rolls = np.flatnonzero(bars.roll[slice(*span)])
    assert len(rolls) == 6
    table = np.asarray(setup.market.bars)[slice(*span)].astype(np.int64)
    for row in rolls:
        assert ledger.position[row - 1] == 2  # held at the last close of the old contract
        gap, move = table[row, GAP], table[row, CLOSE] - table[row, OPEN]
        assert gap > 0
        assert ledger.gross[row - 1] == 2 * move * 500  # not a cent of the gap
        assert ledger.roll_cost[row - 1] >= 2 * 2 * 225  # both sides' commission at least
    others = np.setdiff1d(np.arange(1, len(table) - 1), rolls)
    gross = 2 * (table[others, CLOSE] - table[others - 1, CLOSE]) * 500
    np.testing.assert_array_equal(ledger.gross[others - 1][1:], gross[1:])
    assert ledger.roll_cost.nonzero()[0].tolist() == (rolls - 1).tolist()


@pytest.mark.slow
def test_trains_on_real_bars_end_to_end(capsys, shared_data, tmp_path):
    file = shared_data / "NQ - 30 min - ETH.csv"
    out = tmp_path / "run"
    command = ["train", "strategic", "--data", str(file), "--json", "--out", str(out)]
    assert cli.main([*command, *TINY]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["system"] == "strategic"
    results = json.loads((out / "validation_results.json").read_text())
    for name, report in results["splits"].items():
        assert set(report) >= REPORT, name
        assert set(report["baselines"]) >= BASELINES
        assert set(report["targets"]) == {"sharpe_ratio", "max_drawdown"}
        assert len(report["sharpe_ci95"] or [0, 0]) == 2
        assert sum(x["bars"] for x in report["per_regime"].values()) == report["bars"]
        assert set(report["agent_contributions"]) == set(STRATEGIC.agents)
    assert results["splits"]["test"]["per_year"].keys() == {"2023"}
    assert len(list((out / "plots").glob("*.png"))) == 8
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("system", "figures", "iterations", "met"),
    [
        (TACTICAL, {"episode_rewards": [150.0, 51.0]}, 200, {"reward": True}),
        (TACTICAL, {"episode_rewards": [150.0, 50.0]}, 200, {"reward": False}),
        (TACTICAL, {"episode_rewards": [150.0, 51.0]}, 201, {"reward": False}),
        (
            STRATEGIC,
            {"sharpe_ratio": 2.01, "max_drawdown": 0.149},
            300,
            {"sharpe_ratio": True, "max_drawdown": True},
        ),
        (
            STRATEGIC,
            {"sharpe_ratio": 2.0, "max_drawdown": 0.15},
            300,
            {"sharpe_ratio": False, "max_drawdown": False},
        ),
        (
            STRATEGIC,
            {"sharpe_ratio": None, "max_drawdown": 0.0},
            300,
            {"sharpe_ratio": False, "max_drawdown": True},
        ),
    ],
)
def test_targets_are_met_beyond_them_and_in_time(system, figures, iterations, met):
    report = {"episode_rewards": [0.0], "sharpe_ratio": 0.0, "max_drawdown": 0.0} | figures
    report |= {"episode_bars": 1_000, "exposure": 0.5}
    report["baselines"] = {"buy_and_hold_same_exposure": {"episode_reward": 1.0}}
    setup = SimpleNamespace(system=system, settings=system.settings)
    found = evaluation.targets(setup, report, "test", iterations)
    assert {name: aim["met"] for name, aim in found.items()} == met


def test_a_report_is_of_the_team_as_it_is_deployed():
    config = static_config(STRATEGIC, STRATEGIC.settings)
    low = replace(config, precision="bfloat16")
    assert evaluation.team_policy(low) is evaluation.team_policy(config)


# -- worlds with a known answer -----------------------------------------------------------------


@pytest.mark.usefixtures("optimised")
def test_learns_the_planted_drift(monkeypatch):
    """At least 75 % of the oracle's after-cost Sharpe out of sample, and both targets met."""
    monkeypatch.setattr(evaluation, "contributions", lambda *_: {})
    setup = setup_of(Source(market="planted", seed=1), num_episodes=40)
    networks, most = trained(setup), setup.settings.max_contracts
    report, _ = evaluation.evaluate(setup, networks, setup.split.test, fit_oracle(setup))
    assert report["oracle_sharpe"] > 4
    assert report["oracle_share"] > 0.75
    aims = evaluation.targets(setup, report, "test", setup.settings.num_episodes)
    assert {name: aim["met"] for name, aim in aims.items()} == {
        "sharpe_ratio": True,
        "max_drawdown": True,
    }
    last = summarise(evaluation.team_ledger(setup, networks, setup.split.test), most)
    assert last["sharpe_ratio"] == report["sharpe_ratio"]


@pytest.mark.usefixtures("optimised")
def test_stays_flat_where_nothing_can_be_earned():
    setup = setup_of(Source(market="martingale", seed=0), num_episodes=32)
    ledger = evaluation.team_ledger(setup, trained(setup), setup.split.test)
    assert np.abs(ledger.position).mean() < 0.05 * setup.settings.max_contracts


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_stance_tells_the_hidden_state_and_pays():
    """Falling markets are wilder: its sign is right nearly as often as the exact filter's."""
    setup = setup_of(Source(market="two_state", seed=1), reward_stance=10.0, num_episodes=50)
    networks, span = trained(setup), setup.split.test
    ledger = evaluation.team_ledger(setup, networks, span)
    world, stance = setup.loaded.world, stances(ledger.actions[:, 2])
    mean = np.asarray(setup.market.law.mean)
    sign = np.sign(mean[:-1] - mean[-1])  # which way a stance's bars went, in training
    truth, belief = world.state[slice(*span)], world.belief[slice(*span)]
    right, best = (np.mean(guess == truth) for guess in (sign[stance], np.sign(belief)))
    assert best > 0.8
    assert right > 0.95 * best
    assert right > np.mean(sign[setup.regimes[slice(*span)]] == truth) + 0.03  # than the last label
    assert worth(setup, networks, "regime_detector")["sharpe_ratio_ci95"][0] > 0
    assert worth(setup, networks, "strategic")["sharpe_ratio_ci95"][0] > 0


def stances(actions):
    """Return the stance after each of the regime detector's actions, [n]."""
    set_at = np.maximum.accumulate(np.where(actions > 0, np.arange(len(actions)), -1))
    return np.where(set_at < 0, 0, actions[np.maximum(set_at, 0)] - 1)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_fewer_contracts_when_volatility_rises_and_the_portfolio_manager_earns():
    """Volatility triples for weeks: the cap follows it on every world, and pays over them all.

    A third of a world's path has few changes of volatility, so the unit is the world: 24 of them,
    about ten minutes. The interval is Student's, of the mean gain of one world.
    """
    found = [volatility_step(seed) for seed in range(24)]
    calm, wild, gains = np.array(found).T
    print(np.round(found, 1))
    assert (calm > wild).all()
    assert calm.mean() > 1.5 * wild.mean() > 0
    mean, error = gains.mean(), stats.sem(gains)
    assert stats.t.interval(0.95, len(gains) - 1, mean, error)[0] > 0


def volatility_step(seed):
    """Return mean contracts in calm and in wild bars, and what the portfolio manager adds, USD."""
    money = {"point_value_usd": 2.0, "commission_usd": 0.75, "start_equity_usd": 50_000.0}
    limits = {"max_contracts": 20, "lots_large": 5, "max_leverage": 20.0, "max_drawdown": 0.9}
    setup = setup_of(
        Source(market="volatility_step", seed=seed),
        **(money | limits),
        num_episodes=64,
        market_bars=100_000,
        split=(0.6, 0.1, 0.3),
        market_parameters={"drift_up": 0.06, "drift_down": 0.06, "start_price": 5_000.0},
    )
    networks, span = trained(setup), setup.split.test
    held = np.abs(evaluation.team_ledger(setup, networks, span).position)
    calm = setup.loaded.world.state[slice(*span)] > 0
    gain = worth(setup, networks, "portfolio_manager")["net_pnl"]
    return held[calm].mean(), held[~calm].mean(), gain
