"""Backtests by hand: what a known path pays, how accounts end, and that no policy is privileged."""

import dataclasses
import itertools
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import arrays, core, direct, tactical, units
from gm_jax.env.types import FLAGS, REGULAR
from gm_jax.errors import UserError
from gm_jax.mappo import networks
from gm_jax.mappo.types import Networks
from gm_jax.mappo.validation import Segments, segment_score
from gm_jax.market.bars import Bars
from gm_jax.market.data_report import iso
from gm_jax.market.synthetic import clock
from gm_jax.report import policies
from gm_jax.report.backtest import backtest, backtest_many
from gm_jax.report.metrics import session_closes, session_returns, sharpe_ratio, summarise
from gm_jax.run.evaluation import evaluate, team_ledger
from gm_jax.run.oracles import fit_oracle
from gm_jax.settings import Settings
from tests.mappo.problems import planted_setup


pytestmark = pytest.mark.usefixtures("quick_compiler")


FIRST = 190  # 09:50 New York: regular hours from here to bar 264
HAND = Settings(
    features=("momentum_5",), lots_small=1, lots_large=2, max_contracts=4, impact=0.0
)  # fmt: skip


def history(moves, price=15_000.0, roll=(), hole=()) -> Bars:
    """Build two quiet sessions; `moves` are (open, close) of the bars from FIRST + 1 on."""
    time, session = clock(2 * 276, 5)
    count = len(time)
    open_ = np.full(count, price)
    close = open_.copy()
    for i, (o, c) in enumerate(moves, FIRST + 1):
        open_[i], close[i] = o, c
        open_[i + 1 :] = close[i + 1 :] = c
    is_in = lambda rows: np.isin(np.arange(count), [FIRST + r for r in rows])  # noqa: E731
    return Bars(
        time=time,
        open=open_,
        high=np.maximum(open_, close),
        low=np.minimum(open_, close),
        close=close,
        volume=np.full(count, 1_000.0),
        session=session,
        hole=is_in(hole),
        roll=is_in(roll),
        minutes=5,
    )


def hold(contracts, bars, first=0, count=8, **changes):
    """Backtest holding from FIRST + first on."""
    settings = HAND.replace(**changes)
    market = arrays.build_market(bars, settings, tactical, (0, len(bars)), 10)
    return backtest(
        policies.planned,
        jnp.full(len(bars), contracts, dtype=jnp.int32),
        bars,
        (FIRST + first, FIRST + first + count),
        market,
        units.env_params(settings, 10),
        direct,
    )


PATH = [
    (15_001, 15_003),  # 1: 2 bought at 15,001
    (15_003, 15_000),  # 2
    (15_100, 15_102),  # 3: roll, +100 points that are nobody's
    (15_090, 15_095),  # 4: after a hole
    (15_095, 15_095),
]


def test_buy_and_hold_over_a_roll_and_a_hole_to_the_cent():
    ledger = hold(2, history(PATH, roll=[3], hole=[4]), count=6)
    # 2 contracts of $2 a point: 400 cents a point; each row is what comes by the next close
    assert ledger.gross.tolist() == [2 * 400, -3 * 400, 2 * 400, -7 * 400, 0, 0]
    assert ledger.commission.tolist() == [150, 0, 2 * 150, 0, 0, 150]
    assert ledger.spread.tolist() == [50, 0, 2 * 50, 0, 0, 50]
    assert ledger.roll_cost.tolist() == [0, 0, 400, 0, 0, 0]
    assert not ledger.impact.any()
    assert ledger.position.tolist() == [0, 2, 2, 2, 2, 2]
    assert ledger.target.tolist()[:5] == [2, 2, 2, 2, 2]
    assert ledger.traded.tolist() == [2, 0, 0, 0, 0, 2]
    steps = np.cumsum([0, 800 - 200, -1_200, 800 - 400, -2_800, 0])
    assert ledger.equity.tolist() == (10_000_000 + steps).tolist()
    assert ledger.final_equity == 10_000_000 - 3_000 - 200
    report = summarise(ledger, 4)
    assert (report["gross_pnl"], report["commission"], report["spread_cost"]) == (-24, 6, 2)
    assert (report["roll_cost"], report["net_pnl"], report["turnover"]) == (4, -32, 4)
    assert report["final_portfolio_value"] == 99_968
    assert report["closed_early"] is None


def test_an_order_lapses_at_a_hole_and_is_given_again():
    ledger = hold(2, history(PATH, roll=[3], hole=[4]), first=3, count=4)
    assert ledger.position.tolist() == [0, 0, 2, 2]
    assert ledger.traded.tolist() == [0, 2, 0, 2]
    assert ledger.gross.tolist() == [0, 0, 0, 0]
    assert ledger.final_equity == 10_000_000 - 2 * 200


def test_a_flat_account_rolls_for_nothing():
    ledger = hold(2, history(PATH, roll=[1]), count=3)
    # the roll's gap of 1 point was never held; the order fills after it
    assert (ledger.roll_cost.sum(), ledger.gross.tolist()) == (0, [800, -1_200, 0])


def test_a_stop_inside_the_bar_of_entry_counts_as_two_trades():
    ledger = hold(2, history([(15_000, 14_990)]), count=2, stop_atr=1.0)
    # nothing moved before: the stop is one tick away
    assert ledger.gross.tolist() == [-2 * 50, 0]
    assert (ledger.commission.tolist(), ledger.traded.tolist()) == ([300, 0], [4, 0])
    assert ledger.position.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("close", "changes", "reason"),
    [
        (11_800.0, {}, "drawdown limit"),  # 4 contracts lose $25,600 of $100,000
        (7_500.0, {}, "ruin"),  # $60,000
        (12_400.0, {"maintenance_margin": 0.8}, "margin call"),  # $79,196 < 0.8 · $99,200
    ],
)
def test_after_its_end_an_account_stays_flat_and_says_so(close, changes, reason):
    up = close + 100
    path = [(15_000, 15_000), (15_000, 15_000), (15_000, close), (up, up), (up, 2 * up)]
    ledger = hold(4, history(path), count=300, **changes)  # into the next session
    assert ledger.position[:5].tolist() == [0, 4, 4, 4, 0]
    assert not ledger.position[4:].any()
    assert not ledger.traded[4:].any()
    lost = int(4 * 200 * (15_000 - close))
    # 4 in and 4 out at 100 cents each, and the gap of 100 points before the open
    assert ledger.equity[3] == 10_000_000 - lost - 400
    assert ledger.final_equity == ledger.equity[4] == 10_000_000 - lost + 80_000 - 800
    assert ledger.closed_by() == (reason, 3)
    closed = summarise(ledger, 4)["closed_early"]
    assert closed["reason"] == reason
    assert closed["time"] == iso(ledger.time[3])
    joined = np.where(np.arange(300) < 250, ledger.closed, 0)  # to one that is still open
    assert dataclasses.replace(ledger, closed=joined).closed_by() is None


@pytest.mark.parametrize("column", ["gross", "commission", "spread", "impact", "equity"])
def test_a_ledger_off_by_a_cent_is_refused(column):
    ledger = hold(2, history(PATH))
    for row in (1, 7):
        wrong = getattr(ledger, column).copy()
        wrong[row] += 1
        with pytest.raises(UserError, match="does not add up"):
            dataclasses.replace(ledger, **{column: wrong}).check()
    with pytest.raises(UserError):
        dataclasses.replace(ledger, final_equity=ledger.final_equity + 1).check()
    assert ledger.check() is ledger


# -- on a generated market ------------------------------------------------------------------------


SPAN = (276, 276 * 21)  # twenty sessions


@lru_cache
def oracle():
    return fit_oracle(planted_setup(market_bars=12_000))


def run(policy, data, span=SPAN, **changes):
    setup = planted_setup(market_bars=12_000)
    args = {"market": setup.market, "params": setup.params, "team": tactical} | changes
    return backtest(policy, data, setup.loaded.bars, span, **args)


def returns_of(ledger):
    return session_returns(session_closes(ledger.start_equity, ledger.curve, ledger.session))


def everybody():
    plan = jnp.zeros(len(planted_setup(market_bars=12_000).loaded.bars), dtype=jnp.int32)
    return {
        "flat": (policies.planned, plan, direct),
        "hold 5": (policies.planned, plan + 5, direct),
        "random": (policies.random, jax.random.key(0), tactical),
        "oracle": (policies.oracle, oracle(), tactical),
    }


@pytest.mark.parametrize("name", ["flat", "hold 5", "random", "oracle"])
def test_everybody_acts_through_the_same_environment(name):
    """Lots, delay and costs are those of the team: the ledger follows from the positions."""
    setup = planted_setup(market_bars=12_000)
    policy, data, team = everybody()[name]
    ledger = run(policy, data, team=team)
    bars = np.asarray(setup.market.bars)[slice(*SPAN)]
    after = np.append(ledger.position[1:], 0)
    np.testing.assert_array_equal(ledger.traded, np.abs(after - ledger.position))
    np.testing.assert_array_equal(ledger.commission, 75 * ledger.traded)
    ticks = np.where(np.append(bars[1:], bars[-1:], axis=0)[:, FLAGS] & REGULAR, 1, 2)
    np.testing.assert_array_equal(ledger.spread, 25 * ledger.traded * ticks)
    assert ((ledger.impact > 0) == (ledger.traded > 0)).all()
    open_, close = bars[:, 0], bars[:, 3]
    gap, move = open_[1:] - close[:-1], close[1:] - open_[1:]
    gross = 50 * (ledger.position[:-1] * gap + after[:-1] * move)
    np.testing.assert_array_equal(ledger.gross, np.append(gross, 0))
    assert ledger.position[0] == 0
    assert ledger.position.min() >= 0
    assert ledger.position.max() <= setup.settings.max_contracts
    grown = np.diff(ledger.position).max()
    assert grown <= setup.settings.lots_large or name in ("hold 5", "random")
    assert (ledger.traded.sum() > 0) == (name != "flat")


def test_the_backtest_is_the_environment_stepped_by_hand():
    setup = planted_setup(market_bars=12_000)
    count, key = 150, jax.random.key(3)
    ledger = run(policies.random, key)

    @jax.jit
    def play(state):
        actions = policies.random(key, state, setup.market, setup.params, tactical)
        return actions, *core.step(state, actions, setup.market, setup.params, tactical)

    state = core.start(jnp.int32(SPAN[0]), setup.params, tactical)
    for row in range(count):
        actions, after, outcome = jax.device_get(play(state))
        assert (ledger.position[row], ledger.equity[row]) == (state.position, state.equity)
        assert ledger.actions[row].tolist() == actions.tolist()
        for item in ("gross", "commission", "spread", "impact", "roll_cost"):
            assert getattr(ledger, item)[row] == getattr(outcome.fill, item), (item, row)
        state = after
    assert len(np.unique(ledger.position[:count])) > 3
    assert ledger.time[0] == setup.loaded.bars.time[SPAN[0]]

    many = backtest_many(policies.random, key[None], 0, SPAN, setup.market, setup.params, tactical)
    np.testing.assert_array_equal(many.equity[0], ledger.curve)
    np.testing.assert_array_equal(many.position[0], ledger.position)


def test_the_oracle_does_not_know_the_future():
    setup, known = planted_setup(market_bars=12_000), oracle()
    bars = np.asarray(setup.market.bars)
    rng = np.random.default_rng(0)
    ledger = run(policies.oracle, known)
    assert ledger.position.any()
    for t in rng.integers(SPAN[0], SPAN[1] - 100, 5):
        belief, other = np.array(known.belief), bars.copy()
        belief[t + 1 :] = rng.uniform(-1, 1, len(belief) - t - 1)
        other[t + 1 :, :4] += rng.integers(-500, 500, (len(bars) - t - 1, 1)).astype(np.int32)
        changed = run(
            policies.oracle,
            known.replace(belief=jnp.asarray(belief)),
            market=setup.market.replace(bars=jnp.asarray(other)),
        )
        n = t - SPAN[0] + 1  # rows known by the close of t
        for column in ("actions", "position", "equity", "target"):
            ours, theirs = getattr(ledger, column), getattr(changed, column)
            np.testing.assert_array_equal(theirs[:n], ours[:n])
        assert not np.array_equal(changed.actions[n:], ledger.actions[n:])


def test_the_oracle_is_fitted_on_training_alone():
    """Beliefs and bars of validation and test leave band and size as they are."""
    setup = planted_setup(market_bars=12_000)
    end = setup.split.train[1]
    world = setup.loaded.world
    belief = world.belief.copy()
    belief[end:] *= -1
    bars = np.array(setup.market.bars)
    bars[end:, :4] += 5_000
    other = dataclasses.replace(
        setup,
        loaded=dataclasses.replace(setup.loaded, world=dataclasses.replace(world, belief=belief)),
        market=setup.market.replace(bars=jnp.asarray(bars)),
    )
    again = fit_oracle(other)
    for name in ("band", "high", "low", "work"):
        assert getattr(again, name) == getattr(oracle(), name)


def test_draw_is_uniform_over_legal_actions():
    """60 is a multiple of every count of legal actions: each comes up equally often, exactly."""
    masks = np.array(list(itertools.product([False, True], repeat=5))[1:])
    bits = jnp.arange(60, dtype=jnp.uint32) + jnp.uint32(2**31)
    each = jax.vmap(jax.vmap(policies.draw, in_axes=(0, None)), in_axes=(None, 0))
    drawn = np.asarray(each(jnp.stack([bits] * 3, axis=1), jnp.stack([masks] * 3, axis=1)))
    for mask, actions in zip(masks, drawn, strict=True):
        for agent in range(3):
            counts = np.bincount(actions[:, agent], minlength=5)
            np.testing.assert_array_equal(counts, np.where(mask, 60 // mask.sum(), 0))


@lru_cache
def team():
    """Return networks with random weights, large enough that they choose."""
    setup, rng = planted_setup(market_bars=12_000), np.random.default_rng(0)
    network, inputs = networks.actor_network(setup.config), len(setup.settings.features) + 1
    blank = partial(networks.init, network=network, inputs=inputs, copies=3)
    shapes = jax.eval_shape(blank, jax.random.key(0))
    actor = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    return Networks(actor, None, None)


def test_segment_sharpe_of_the_program_is_the_hosts():
    """One segment of twenty sessions; the program's leaves the position open at the end."""
    setup = planted_setup(market_bars=12_000)
    segments = Segments(jnp.array([SPAN[0]]), jnp.array([SPAN[1] - SPAN[0] - 1]))
    score, sharpe = jax.jit(partial(segment_score, config=setup.config))(
        team().actor, setup.market, setup.params, segments
    )
    ledger = team_ledger(setup, team(), SPAN)
    assert ledger.traded.sum() > 100
    left_open = dataclasses.replace(ledger, final_equity=int(ledger.equity[-1]))
    host = sharpe_ratio(returns_of(left_open))
    assert sharpe == pytest.approx(host, rel=1e-3)
    assert score == sharpe
    assert summarise(ledger, setup.settings.max_contracts)["sessions"] == 20


def test_the_report_puts_the_team_beside_baselines_on_the_same_bars():
    setup = planted_setup(market_bars=12_000)
    report, ledgers = evaluate(setup, team(), SPAN, oracle())
    assert next(iter(ledgers)) == "team"
    for ledger in ledgers.values():
        np.testing.assert_array_equal(ledger.time, ledgers["team"].time)
    assert report["net_pnl"] == summarise(ledgers["team"], 6)["net_pnl"]
    assert report["baselines"]["flat"]["net_pnl"] == 0
    # $100,000 over about $30,000 a contract
    assert np.unique(ledgers["buy_and_hold"].position).tolist() == [0, 3]
    same = ledgers["buy_and_hold_same_exposure"].position[-1]
    assert same == pytest.approx(6 * report["exposure"], abs=0.5)
    share = report["sharpe_ratio"] / report["oracle_sharpe"]
    assert report["oracle_share"] == pytest.approx(share)
