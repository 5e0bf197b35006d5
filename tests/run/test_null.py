"""The null test: its p-value, its copies, its statistic, and that it can be believed.

On markets without direction p-values are uniform; on an easy planted one they are as small as they
can be. Where the statistic leaks, the same check says so.
"""

import dataclasses
import json
import shutil
import signal
from functools import cache, partial

import jax
import numpy as np
import pytest
from scipy import stats

from gm_jax import cli
from gm_jax.env import direct
from gm_jax.errors import UserError
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.report import policies
from gm_jax.report.backtest import backtest
from gm_jax.report.metrics import summarise
from gm_jax.run import members as run_members
from gm_jax.run import null_test, pace, results, training
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import team_ledger
from gm_jax.run.members import train_members
from gm_jax.run.null_test import p_value, statistics
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import STRATEGIC
from tests.mappo.problems import planted_setup
from tests.mappo.test_members import BUSY, compile_once, compiled_in_haste, launches
from tests.run.brief import report_of_the_team_alone
from tests.run.test_training import TINY


# p-value


def test_p_value_by_hand():
    """(1 + copies at least as good) / (N + 1): 1/5 above all of four, 1 below all; ties count."""
    null = [0.1, -0.3, 0.7, 0.2]
    assert p_value(0.8, null) == pytest.approx(1 / 5)
    assert p_value(0.7, null) == pytest.approx(2 / 5)
    assert p_value(0.15, null) == pytest.approx(3 / 5)
    assert p_value(-1.0, null) == pytest.approx(1)
    assert p_value(0.0, [0.0] * 9) == pytest.approx(1)
    assert p_value(1.0, []) == 1


def test_ranks_of_exchangeable_numbers_are_uniform():
    """Of ten numbers any may be the real one: each p-value from 1/10 to 1 comes once."""
    numbers = np.random.default_rng(0).permutation(10).tolist()
    found = [p_value(x, [y for y in numbers if y != x]) for x in numbers]
    np.testing.assert_allclose(sorted(found), np.arange(1, 11) / 10)


# copies


def test_copy_keeps_all_but_direction():
    setup = planted_setup(**BUSY)
    copies = [null_test.copy(setup, number) for number in (0, 1, 1)]
    bars = setup.loaded.bars
    for one in copies:
        theirs = one.loaded.bars
        for column in ("time", "volume", "session", "hole", "roll"):
            np.testing.assert_array_equal(getattr(theirs, column), getattr(bars, column))
        assert (one.split, one.warmup, one.episode_length) == (setup.split, setup.warmup, 100)
        assert (one.config, one.settings) == (setup.config, setup.settings)
        assert one.loaded.world is None  # nothing is known of it
        np.testing.assert_array_equal(one.market.starts, setup.market.starts)
        np.testing.assert_array_equal(one.segments.first, setup.segments.first)
        mine, other = (np.diff(np.log(b.close)) for b in (bars, theirs))
        mean = mine[setup.split.train[0] : setup.split.train[1]].mean()
        same = np.isclose(other, mine, atol=1e-4)
        turned = np.isclose(other - mean, mean - mine, atol=1e-4)
        assert (same | turned).all()  # up to a tick
        assert 0.45 < turned.mean() < 0.6
        first, end = setup.split.train
        seen = np.asarray(one.market.features)[first:end]
        np.testing.assert_allclose(one.market.mean, seen.mean(axis=0), rtol=1e-3, atol=1e-4)
    closes = [one.loaded.bars.close for one in copies]
    assert (closes[0] != closes[1]).mean() > 0.9
    np.testing.assert_array_equal(closes[1], closes[2])
    other = dataclasses.replace(setup, settings=setup.settings.replace(seed=7))
    assert (null_test.copy(other, 1).loaded.bars.close != closes[1]).mean() > 0.9
    assert len({one.loaded.digest for one in (*copies, setup)}) == 3


# statistic


def networks_of(setup, seeds):
    """Return stacked networks of teams that trade, untrained."""
    start = partial(learner.init_state, config=setup.config)
    states = [start(jax.random.key(seed), setup.market, setup.params) for seed in seeds]
    return jax.tree.map(lambda *x: jax.numpy.stack(x), *(state.networks for state in states))


def by_hand(setup, networks):
    """Return the statistic from two sequential backtests and the metrics of their ledgers."""
    span, most = setup.split.test, setup.settings.max_contracts
    team = team_ledger(setup, networks, span)
    mean = team.position.mean()
    held = 0 if mean == 0 else int(np.sign(mean)) * max(1, round(abs(mean)))
    plan = np.full(len(setup.loaded.bars), held, np.int32)
    world = (setup.loaded.bars, span, setup.market, setup.params, direct)
    holding = backtest(policies.planned, plan, *world)
    sharpes = [summarise(ledger, most)["sharpe_ratio"] or 0.0 for ledger in (team, holding)]
    return sharpes[0] - sharpes[1], team, held


def test_statistic_against_sequential_backtests():
    """Long, short, mixed and idle teams, each on a market of its own: to the last digits."""
    shorts = {"allow_short": True, "initial_neutral": 0.03, "split": (0.3, 0.1, 0.6)}
    setup = planted_setup(market_bars=12_000, **shorts)
    setups = [setup, *(null_test.copy(setup, number) for number in range(5))]
    networks = networks_of(setup, range(6))
    idle = jax.tree.map(lambda x: x.at[5].set(0), networks.actor)
    networks = networks.replace(actor=idle)
    found = statistics(setups, networks)
    holdings = []
    for m, one in enumerate(setups):
        wanted, team, held = by_hand(one, jax.tree.map(lambda x, m=m: x[m], networks))
        assert len(np.unique(team.session)) > 20  # the metrics give a ratio
        assert found[m] == pytest.approx(wanted, abs=1e-9)
        holdings.append(held)
    assert found[5] == 0
    assert holdings[5] == 0
    assert min(holdings) < 0 < max(holdings)
    assert len({*found}) > 4
    alone = statistics(setups[:1], jax.tree.map(lambda x: x[:1], networks))
    assert alone[0] == pytest.approx(found[0], abs=1e-12)


def test_holding_throughout_is_worth_nothing(monkeypatch):
    """Timing is what counts: a team that buys once has a statistic of about 0, up or down."""
    setup = planted_setup(market="realistic", market_bars=12_000, split=(0.3, 0.1, 0.6))

    def buys_at_once(actor, state, market, params, team):
        del actor, state, market, params, team
        return jax.numpy.array([2, 0, 2])  # BUY_LARGE, HOLD, BUY_LARGE

    monkeypatch.setattr(null_test, "team_policy", lambda config: buys_at_once)
    networks = networks_of(setup, [0])
    assert abs(statistics([setup], networks)[0]) < 0.1
    world = (setup.loaded.bars, setup.split.test, setup.market, setup.params, setup.system.team)
    whole = backtest(buys_at_once, 0, *world)
    assert abs(summarise(whole, 6)["sharpe_ratio"]) > 0.3


def test_one_test_session_is_refused_before_the_training():
    sets = {"market_bars": 1_500, "purge_bars": 0, "embargo_sessions": 0}
    with pytest.raises(
        UserError, match=r"The null test compares .* one session, expected at least"
    ):
        planted_setup(null_copies=1, **sets, episode_length=50)
    planted_setup(**sets, episode_length=50)


# believable


COPIES = 9
WORLD = {
    **{"hidden_sizes": (16, 16), "layer_norm": 0, "num_envs": 8, "episode_length": 100},
    **{"rollout_length": 50, "num_minibatches": 2, "num_epochs": 1, "num_episodes": 4},
    **{"validate_every": 2, "lr_actor": 1e-2, "split": (0.5, 0.15, 0.35), "market_bars": 3_000},
    "features": ("return_8", "volatility_16", "rsi_14"),
    # teams that trade, since markets on which nobody does tie
    **{"allow_short": True, "initial_neutral": 0.03, "commission_usd": 0.25, "impact": 0.1},
    **{"spread_ticks_regular": 0, "spread_ticks_other": 0},
}


@cache
def world(market, seed, kappa=None, **changes):
    """Return a small strategic problem on a generated market of 30 minutes."""
    settings = STRATEGIC.settings.replace(**(WORLD | changes), seed=seed)
    settings = settings.replace(market_parameters={} if kappa is None else {"kappa": kappa})
    loaded = load(Source(market=market, seed=seed), settings, STRATEGIC.minutes)
    return prepare(STRATEGIC, settings, loaded)


def member(real, number):
    """Return the setup of a member: of each run the real market, then its copies."""
    run, copy = divmod(number, 1 + COPIES)
    return real(run) if copy == 0 else null_test.copy(real(run), copy)


def on_real_markets(real, part):
    """Return the statistic of every team on the test split of its run's real market."""
    return statistics([real(number // (1 + COPIES)) for number in part.numbers], part.networks)


def scored(folder, runs, real):
    """Train runs and copies side by side; return statistics at home and on the real market.

    Returns:
        [runs, 1 + COPIES] f64 each.
    """
    numbers, found = range(runs * (1 + COPIES)), []
    for part in train_members(RunDirectory(folder), "null", numbers, partial(member, real)):
        home, abroad = statistics(part.setups, part.networks), on_real_markets(real, part)
        found += zip(home, abroad, strict=True)
    return np.array(found).T.reshape(2, runs, 1 + COPIES)


def distance(p_values):
    """Return the Kolmogorov-Smirnov distance from the uniform law on 1/(N + 1), …, 1."""
    steps = np.arange(1, COPIES + 2) / (COPIES + 1)
    return max(abs((np.array(p_values) <= step + 1e-9).mean() - step) for step in steps)


def critical(runs):
    """Return the distance that p-values of so many runs exceed once in a hundred times, or less."""
    return stats.kstwo.isf(0.01, runs)


def uniform_unless_it_leaks(folder, runs, **changes):
    """Check the p-values on martingales; the same check fails where one chooses by the test split.

    The cheat tries the teams of all the copies on the real test split and shows the best.
    """
    home, abroad = scored(folder, runs, partial(world, "martingale", **changes))
    assert (home == 0).mean() < 0.1  # the teams trade
    honest = [p_value(one[0], one[1:]) for one in home]
    cheat = [p_value(best.max(), one[1:]) for one, best in zip(home, abroad, strict=True)]
    print(np.sort(honest), np.sort(cheat))
    assert distance(honest) < critical(runs) < distance(cheat)


@pytest.fixture
def in_haste(monkeypatch):
    monkeypatch.setattr(run_members, "_compile", compile_once)
    monkeypatch.setattr(run_members, "MOST", 50)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_p_values_on_martingales_are_uniform(tmp_path, in_haste):
    uniform_unless_it_leaks(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_p_values_on_long_martingales_are_uniform(tmp_path):
    """About five minutes on two cores."""
    uniform_unless_it_leaks(tmp_path, 100, market_bars=6_000, num_envs=16, num_episodes=8)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_p_value_is_small_where_there_is_something_to_learn(tmp_path, in_haste):
    """On an easy planted market the team beats those of all nine copies: p = 1/10, five times."""
    home, _ = scored(tmp_path, 5, partial(world, "planted", kappa=0.6, num_episodes=20))
    assert [p_value(one[0], one[1:]) for one in home] == [1 / (1 + COPIES)] * 5


# runs

EXPORT = training._export


def gm_jax(*arguments):
    return cli.main([*map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def plain_runs():
    """Runs that are compiled in haste, draw and export nothing and report the team alone."""
    with pytest.MonkeyPatch.context() as patch, compiled_in_haste():
        report_of_the_team_alone(patch.setattr)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 4 iterations, of a team that trades and had no null test, to copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    trades = ("allow_short=true", "initial_neutral=0.1", "lr_actor=0.001")
    sets = [x for a in [*TINY, "num_episodes=4", *trades] for x in ("--set", a)]
    assert gm_jax("train", "tactical", "--out", out, *sets) == 0
    return out


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(run_members, "_compile", compile_once)
    monkeypatch.setattr(run_members, "MOST", 2)
    monkeypatch.setattr(pace, "INTERVAL_SECONDS", 0)
    return shutil.copytree(finished, tmp_path / "run")


def found(run):
    path = run / "validation_results.json"
    return json.loads(path.read_text())["splits"]["test"]["null_test"]


def test_copies_are_added_to_a_finished_run(run, monkeypatch, capsys):
    assert found(run) is None
    seen = launches(monkeypatch)
    assert gm_jax("train", "tactical", "--resume", run, "--null", 2) == 0
    two = found(run)
    assert (two["copies"], len(two["null"]), len(seen)) == (2, 2, 4)
    assert two["p_value"] == p_value(two["statistic"], two["null"])
    assert two["null_mean"] == pytest.approx(sum(two["null"]) / 2)
    assert f"p = {two['p_value']:.3f}" in capsys.readouterr().err
    assert not (run / null_test.NAME).exists()

    assert gm_jax("train", "tactical", "--resume", run, "--null", 4) == 0
    four = found(run)
    assert len(seen) == 8  # the first two are not trained again
    assert four["null"][:2] == two["null"]
    assert four["statistic"] == two["statistic"]
    assert len({*four["null"]}) >= 3  # a team may stay flat
    assert json.loads((run / null_test.FILE).read_text())["statistics"] == four["null"]

    assert gm_jax("train", "tactical", "--resume", run, "--null", 2) == 0
    assert (found(run), len(seen)) == (two, 8)
    capsys.readouterr()
    assert gm_jax("evaluate", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["null_test"] == two

    path = run / "validation_results.json"  # as after a resume that was killed: of other networks
    path.write_text(json.dumps(json.loads(path.read_text()) | {"iterations": 3}))
    assert gm_jax("evaluate", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["null_test"] is None


def test_a_null_test_that_cannot_be_done_leaves_the_run_whole(run, monkeypatch, capsys):
    def impossible(*_):
        raise UserError("The prices of a copy are beyond what is counted.")

    assert not (run / "manifest.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(training, "_export", EXPORT)
        patch.setattr(results, "null_test", impossible)
        assert gm_jax("train", "tactical", "--resume", run, "--null", 2) == 2
    said = capsys.readouterr().err
    assert "beyond what is counted. The run itself is whole" in said
    assert "--null 0 --walk-forward 0` ends it" in said
    assert (run / "manifest.json").exists() == package.available()
    assert gm_jax("train", "tactical", "--resume", run, "--null", 0, "--walk-forward", 0) == 0


def test_interrupted_null_test_goes_on_where_it_was(run, tmp_path, monkeypatch, capsys):
    whole = shutil.copytree(run, tmp_path / "whole")
    assert gm_jax("train", "tactical", "--resume", whole, "--null", 4) == 0
    for at, more in ((2, ("--null", 4)), (3, ())):  # that copies are wanted is remembered
        with monkeypatch.context() as patch:
            launches(patch, at, signal.SIGINT)  # inside the first two copies, inside the others
            assert gm_jax("train", "tactical", "--resume", run, *more) == 130
        assert "go on with `gm-jax train tactical --resume" in capsys.readouterr().err
        assert found(run) is None
    left = launches(monkeypatch)
    assert gm_jax("train", "tactical", "--resume", run) == 0
    assert len(left) == 8 - 2 - 3
    assert found(run) == found(whole)
    assert found(run)["copies"] == 4


def test_copies_of_another_length_do_not_count(finished, run):
    directory = RunDirectory.open(run)
    assert null_test._known(directory, 4) == []
    directory.write(null_test.FILE, {"num_episodes": 4, "statistics": [0.5, -0.25]})
    assert null_test._known(directory, 4) == [0.5, -0.25]
    assert null_test._known(directory, 8) == []
