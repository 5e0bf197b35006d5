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
from gm_jax.mappo import learner
from gm_jax.market.split import Split
from gm_jax.report import policies
from gm_jax.report.backtest import backtest
from gm_jax.report.metrics import summarise
from gm_jax.run import null_test, results
from gm_jax.run import members as run_members
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import team_ledger
from gm_jax.run.members import train_members
from gm_jax.run.null_test import p_value, statistics
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import STRATEGIC
from tests.mappo.problems import planted_setup
from tests.mappo.test_members import BUSY, compile_once, compiled_in_haste, launches
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
    """Timing is what counts: a team that buys once has a statistic of about 0 on a rising market."""
    setup = planted_setup(market="realistic", market_bars=12_000, split=(0.3, 0.1, 0.6))

    def buys_at_once(actor, state, market, params, team):
        del actor, state, market, params, team
        return jax.numpy.array([2, 0, 2])  # BUY_LARGE, HOLD, BUY_LARGE

    monkeypatch.setattr(null_test, "team_policy", lambda config: buys_at_once)
    networks = networks_of(setup, [0])
    assert abs(statistics([setup], networks)[0]) < 0.1
    whole = backtest(
        buys_at_once, 0, setup.loaded.bars, setup.split.test, setup.market, setup.params, setup.system.team
    )
    assert abs(summarise(whole, 6)["sharpe_ratio"]) > 0.3


def test_one_test_session_is_refused_before_the_training():
    sets = {"market_bars": 1_500, "purge_bars": 0, "embargo_sessions": 0}
    with pytest.raises(UserError, match=r"The null test compares .* one session, expected at least"):
        planted_setup(null_copies=1, **sets, episode_length=50)
    planted_setup(**sets, episode_length=50)


# believable


WORLD = {
    **{"hidden_sizes": (16, 16), "layer_norm": 0, "num_envs": 16, "episode_length": 100},
    **{"rollout_length": 50, "num_minibatches": 2, "num_epochs": 2, "num_episodes": 6},
    **{"validate_every": 2, "lr_actor": 3e-3, "split": (0.5, 0.15, 0.35)},
    "features": ("return_8", "volatility_16", "rsi_14"),
    # teams that trade, since markets on which nobody does tie
    **{"allow_short": True, "initial_neutral": 0.03, "commission_usd": 0.25, "impact": 0.1},
    **{"spread_ticks_regular": 0, "spread_ticks_other": 0},
}
COPIES = 9


@cache
def world(market, seed, **changes):
    """Return a small strategic problem on a generated market."""
    settings = STRATEGIC.settings.replace(**(WORLD | changes), seed=seed)
    loaded = load(Source(market=market, seed=seed), settings, STRATEGIC.minutes)
    return prepare(STRATEGIC, settings, loaded)


def member(real, number):
    """Return the setup of a member: runs of a real market, as copy 0, and its copies."""
    run, copy = divmod(number, COPIES + 1)
    return real(run) if copy == 0 else null_test.copy(real(run), copy)


def scored(folder, runs, real, score=statistics):
    """Train all runs and their copies side by side; return statistics [runs, 1 + COPIES]."""
    numbers = range(runs * (COPIES + 1))
    found = {}
    for part in train_members(RunDirectory(folder), "null", numbers, partial(member, real)):
        found |= dict(zip(part.numbers, zip(*score(part), strict=True), strict=True))
    return np.array([found[n] for n in numbers]).T.reshape(-1, runs, COPIES + 1)


def p_values(scores, null=None):
    """Return a p-value per run, from [runs, 1 + COPIES] statistics."""
    null = scores if null is None else null
    return np.array([p_value(x[0], y[1:]) for x, y in zip(scores, null, strict=True)])


def distance(found):
    """Return the Kolmogorov-Smirnov distance from the uniform law on 1/(N + 1), …, 1."""
    steps = np.arange(1, COPIES + 2) / (COPIES + 1)
    return max(abs((found <= step + 1e-9).mean() - step) for step in steps)


def critical(runs, level):
    """Return the distance that a uniform law exceeds with a probability of at most `level`."""
    return stats.kstwo.isf(level, runs)


def honest_and_not(real, part):
    """Return the statistics, and those of every team of a run on the test split of the real market.

    Who picks among the latter chooses on what he measures by.
    """
    reals = [real(number // (COPIES + 1)) for number in part.numbers]
    return statistics(part.setups, part.networks), statistics(reals, part.networks)
