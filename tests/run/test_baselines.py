"""Baselines: as large as they say, blind to what is to come, and chance that trades as much."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from gm_jax.env import arrays, direct
from gm_jax.report import policies
from gm_jax.report.backtest import backtest
from gm_jax.run.baselines import baselines, coin_flips, sizes
from tests.env.test_no_lookahead import scrambled
from tests.mappo.problems import planted_setup
from tests.report.ledgers import by_rows


NAMES = {
    *("flat", "buy_and_hold", "buy_and_hold_same_exposure", "sma_crossover"),
    *("sma_crossover_same_exposure", "random_same_turnover"),
}


def positions(*path):
    """Build the ledger of a team that held these contracts, flat in the first bar."""
    path = np.array(path)
    return by_rows(np.zeros(len(path)), path)


def cheap(**changes):
    """Return a problem without limits that could stand in a plan's way."""
    return planted_setup(max_leverage=100.0, daily_loss=1.0, max_drawdown=1.0, **changes)


def team_of(setup, span, seed=0):
    """Return the ledger of a team that changes its mind every few bars."""
    rng = np.random.default_rng(seed)
    low = -3 if setup.settings.allow_short else 0
    plan = np.repeat(rng.integers(low, 4, len(setup.loaded.bars)), 7)[: len(setup.loaded.bars)]
    world = (setup.loaded.bars, span, setup.market, setup.params, direct)
    return backtest(policies.planned, np.asarray(plan, np.int32), *world)


def on(setup, bars):
    """Return the setup on other bars, with all that was fitted as it was."""
    team, train = setup.system.team, setup.split.train
    market = arrays.build_market(bars, setup.settings, team, train, setup.episode_length)
    market = market.replace(mean=setup.market.mean, scale=setup.market.scale)
    loaded = dataclasses.replace(setup.loaded, bars=bars)
    return dataclasses.replace(setup, loaded=loaded, market=market)


# sizes


def test_sizes_by_hand():
    """$100,000 at 2 · 15,000 a contract are 3.3; a mean of 1.6 contracts are two."""
    setup = planted_setup()
    price = setup.loaded.bars.close[900]
    assert 14_000 < price < 16_000
    span = (900, 910)
    assert sizes(setup, positions(*[0, 2, 2, 2, 2, 0, 2, 2, 2, 2]), span) == (3, 2)
    assert sizes(setup, positions(*[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), span) == (3, 1)
    assert sizes(setup, positions(*[0] * 10), span) == (3, 0)
    assert sizes(setup, positions(*[0, -4, -4, -4, -4, -4, -4, 4, 4, 0]), span) == (3, 3)
    rich = planted_setup(start_equity_usd=900_000.0)
    assert sizes(rich, positions(*[0] * 10), span)[0] == rich.settings.max_contracts
    poor = planted_setup(start_equity_usd=10_000.0)
    assert sizes(poor, positions(*[0] * 10), span)[0] == 1


def test_plans_hold_what_they_say():
    setup = cheap(allow_short=True)
    span = setup.split.test
    team = team_of(setup, span)
    unlevered, same = sizes(setup, team, span)
    assert unlevered != same
    found = baselines(setup, team, span)
    assert set(found) == NAMES
    for ledger in found.values():
        assert ledger.position[0] == 0
        assert len(ledger.position) == span[1] - span[0]
    for name, contracts in (("buy_and_hold", unlevered), ("buy_and_hold_same_exposure", same)):
        assert set(found[name].position[1:]) == {contracts}
        assert found[name].traded.sum() == 2 * contracts
    assert not found["flat"].position.any()
    assert found["flat"].final_equity == found["flat"].start_equity


@pytest.mark.parametrize("short", [False, True])
def test_crossover_against_pandas(short):
    setup = cheap(allow_short=short)
    span = setup.split.test
    team = team_of(setup, span)
    close = pd.Series(setup.loaded.bars.close)
    ahead = (close.rolling(5).mean() - close.rolling(20).mean()).to_numpy()
    clear = np.abs(ahead) > 1e-6  # sums in another order do not agree on a tie
    side = np.where(ahead > 0, 1, -1 if short else 0)
    for name, size in zip(
        ("sma_crossover", "sma_crossover_same_exposure"), sizes(setup, team, span), strict=True
    ):
        ledger = baselines(setup, team, span)[name]
        decided = slice(span[0], span[1] - 1)  # filled at the next open
        expected = (size * side)[decided]
        np.testing.assert_array_equal(ledger.position[1:][clear[decided]], expected[clear[decided]])
        assert {*ledger.position[1:]} == ({-size, size} if short else {0, size})


@pytest.mark.parametrize("short", [False, True])
def test_plans_know_nothing_of_later_bars(short):
    """Whatever comes after bar t, what is held and earned up to its close is the same."""
    setup = planted_setup(allow_short=short)
    first, end = setup.split.test
    team = team_of(setup, (first, end))
    known = baselines(setup, team, (first, end))
    rng = np.random.default_rng(0)
    for last in rng.integers(first + 1, end - 1, 4):
        other = on(setup, scrambled(setup.loaded.bars, last, rng))
        rows = last - first + 1
        found = baselines(other, team, (first, end))
        for name, ledger in known.items():
            for column in ("position", "equity", "target"):
                here, there = (getattr(x, column)[:rows] for x in (ledger, found[name]))
                np.testing.assert_array_equal(here, there, err_msg=f"{name} {column}")
        later = slice(rows, None)
        assert (found["sma_crossover"].target[later] != known["sma_crossover"].target[later]).any()


def test_nothing_beside_a_team_that_held_nothing():
    setup = planted_setup()
    first, end = setup.split.test
    found = baselines(setup, positions(*[0] * (end - first)), (first, end))
    for name in ("buy_and_hold_same_exposure", "sma_crossover_same_exposure"):
        assert not found[name].position.any()
    assert not found["random_same_turnover"].traded.any()
    assert found["buy_and_hold"].position.any()


# chance


def walk(length, stay, most, rng, short=False):
    """Return the path of a team that changes to a random position now and then."""
    low = -most if short else 0
    changes = rng.random(length) > stay
    path = rng.integers(low, most + 1, length)[np.maximum.accumulate(changes * np.arange(length))]
    path[0] = 0
    return path


RNG = np.random.default_rng(0)
TEAMS = {
    "busy": walk(2_000, 0.5, 4, RNG),
    "patient": walk(2_000, 0.99, 6, RNG),
    "long and short": walk(2_000, 0.9, 6, RNG, short=True),
    "nearly always": np.append(0, np.tile([6] * 99 + [0], 20)),
    "hardly ever": np.append(np.zeros(1_000, int), [1] * 10 + [0] * 990),
    "buys once and holds": np.append(0, np.full(1_999, 6)),
    "holds one": np.append(0, np.full(1_999, 1)),
    "half the time": np.repeat([0, 3], 1_000),
}


def exposure_and_turnover(plan):
    """Return mean absolute position and contracts traded, of a plan that fills a bar later."""
    held = np.append(0, plan[:-1])
    return np.abs(held).mean(), np.abs(np.diff(held, append=0)).sum()


@pytest.mark.parametrize("name", TEAMS)
@pytest.mark.parametrize("short", [False, True])
def test_coin_flips_hold_and_trade_as_much_as_the_team(name, short):
    """Means over 400 seeds within four standard errors; never more than is admitted."""
    team = positions(*TEAMS[name])
    plans = [coin_flips(team, 6, short, seed) for seed in range(400)]
    found = np.array([exposure_and_turnover(plan) for plan in plans])
    wanted = np.abs(team.position).mean(), team.traded.sum()
    error = found.std(axis=0, ddof=1) / 400**0.5
    assert (np.abs(found.mean(axis=0) - wanted) <= 4 * error + 1e-9).all(), (found.mean(0), wanted)
    assert (error < 0.1 * np.array(wanted)).all()  # a test that could see a difference
    assert np.abs(plans).max() <= 6
    assert (np.min(plans) < 0) == short
    if short:
        mean = np.mean(plans, axis=1)
        assert abs(mean.mean()) < 4 * mean.std() / 400**0.5 + 1e-9


def test_coin_flips_that_cannot_trade_as_much_hold_as_much():
    """A team that turns 6 contracts round at every bar: flat and 6 in turn trade half of that."""
    team = positions(0, *([6, -6] * 500))
    plans = [coin_flips(team, 6, True, seed) for seed in range(50)]
    exposure, turnover = np.mean([exposure_and_turnover(plan) for plan in plans], axis=0)
    assert exposure == pytest.approx(6, rel=0.01)
    assert turnover <= team.traded.sum()


def test_coin_flips_are_drawn_from_their_seed_alone():
    team = positions(*TEAMS["busy"])
    one, same, other = (coin_flips(team, 6, False, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    moves = np.corrcoef(one[:-1], TEAMS["busy"][1:])[0, 1]
    assert abs(moves) < 0.1  # it does not follow the team
    for short in (False, True):
        assert not coin_flips(positions(0, 0, 0), 6, short, 0).any()
        assert not coin_flips(positions(0), 6, short, 0).any()


def test_random_baseline_trades_like_the_team_on_the_market():
    setup = cheap()
    span = setup.split.test
    team = team_of(setup, span)
    found = [
        baselines(
            dataclasses.replace(setup, settings=setup.settings.replace(seed=seed)), team, span
        )
        for seed in range(12)
    ]
    chance = [ledgers["random_same_turnover"] for ledgers in found]
    assert np.mean([x.traded.sum() for x in chance]) == pytest.approx(team.traded.sum(), rel=0.1)
    held = [np.abs(x.position).mean() for x in chance]
    assert np.mean(held) == pytest.approx(np.abs(team.position).mean(), rel=0.1)
    assert len({x.final_equity for x in chance}) == 12
