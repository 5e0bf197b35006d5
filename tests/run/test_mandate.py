"""A strategic run bounds a tactical one: when, how much, and never before it can be known."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from gm_jax import cli, config
from gm_jax.env import account, arrays, core, tactical
from gm_jax.errors import UserError
from gm_jax.market import resampling
from gm_jax.market.bars import Bars
from gm_jax.market.synthetic import generate
from gm_jax.run import evaluate, mandate, null_test, pace, record, training
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.mandate import bounds_of
from gm_jax.run.source import Source
from gm_jax.systems import STRATEGIC, TACTICAL
from tests.env.test_no_lookahead import scrambled
from tests.mappo.problems import planted_setup
from tests.mappo.test_members import compiled_in_haste


BARS = 12_000
SETS = {
    **{"hidden_sizes": "[16,16]", "num_envs": 8, "episode_length": 100, "rollout_length": 50},
    **{"num_minibatches": 2, "num_epochs": 2, "num_episodes": 3, "validate_every": 1},
    **{"initial_neutral": 0.02, "allow_short": "true", "lr_actor": 0.01},
}
LONGER = {"layer_norm": 0, "features": "[return_8,volatility_16,rsi_14]"}
MINUTE = 60 * 10**9


def gm_jax(*arguments, **settings):
    """Run a command; return its status."""
    sets = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
    return cli.main([*map(str, arguments), *sets])


@pytest.fixture(scope="module", autouse=True)
def in_haste():
    with compiled_in_haste():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same planted market in bars of 5 and of 30 minutes."""
    folder = tmp_path_factory.mktemp("bars")
    five, thirty = folder / "five.csv", folder / "thirty.csv"
    made = ("--bars", BARS, "--minutes", 5, "--seed", 4, "--out", five)
    assert gm_jax("data", "synth", "--market", "planted", *made) == 0
    assert gm_jax("data", "resample", five, "--minutes", 30, "--out", thirty) == 0
    return five, thirty


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A strategic run, and a tactical one under its mandate; without their reports."""
    folder = tmp_path_factory.mktemp("runs")
    strategic, tactical_ = folder / "strategic", folder / "tactical"
    five, thirty = files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_results", lambda *_: None)
        made = ("train", "strategic", "--data", thirty, "--out", strategic)
        assert gm_jax(*made, **SETS, **LONGER) == 0
        made = ("train", "tactical", "--data", five, "--out", tactical_, "--strategic", strategic)
        assert gm_jax(*made, **SETS) == 0
    return strategic, tactical_


@pytest.fixture(scope="module")
def bars(runs):
    return record.reopen(RunDirectory(runs[1]))[0].loaded.bars


# when


def clock(*stretches, minutes=5):
    """Return bar opens, ns UTC, of stretches of New York time."""
    parts = [
        pd.date_range(first, last, freq=f"{minutes}min", tz="America/New_York", inclusive="left")
        for first, last in stretches
    ]
    times = np.concatenate([p.tz_convert("UTC").tz_localize(None).to_numpy() for p in parts])
    return times.astype("datetime64[ns]").astype(np.int64)


def at(time):
    return int(pd.Timestamp(time, tz="America/New_York").tz_convert("UTC").value)


def bars_at(time):
    flat = np.full(len(time), 15_000.0)
    no = np.zeros(len(time), dtype=bool)
    return Bars(time, flat, flat, flat, flat, flat, np.zeros(len(time), int), no, no, minutes=5)


# Wednesday, half of the day after Thanksgiving, a weekend, Monday, and a clock change later on
WEEK = (
    ("2023-11-21 18:00", "2023-11-22 17:00"),
    ("2023-11-23 18:00", "2023-11-24 13:15"),
    ("2023-11-26 18:00", "2023-11-27 17:00"),
    ("2024-03-08 12:00", "2024-03-08 17:00"),
    ("2024-03-10 18:00", "2024-03-11 17:00"),
)


def visible(time, decided, share):
    """Return the share that the step at the close of the 5-minute bar may know: a slow search."""
    now = 0.0
    for label, value in zip(decided, share, strict=True):
        if label + 30 * MINUTE <= time + 5 * MINUTE:
            now = value
    return now


def test_a_decision_is_seen_from_the_close_of_its_bar_on():
    """By hand: the bar of 09:30 closes at 10:00, with the 5-minute bar that opened at 09:55."""
    decided = np.array([at("2023-11-22 09:30"), at("2023-11-22 10:00")])
    time = clock(("2023-11-22 09:30", "2023-11-22 10:45"))
    low, high = bounds_of(np.array([0.4, -0.2]), decided + 30 * MINUTE, bars_at(time)).T
    opens = [f"{t:%H:%M}" for t in pd.to_datetime(time, utc=True).tz_convert("America/New_York")]
    seen = dict(zip(opens, zip(low, high, strict=True), strict=True))
    assert seen["09:30"] == seen["09:50"] == (0, 0)
    assert seen["09:55"] == seen["10:00"] == seen["10:20"] == (0, 0.4)
    assert seen["10:25"] == seen["10:40"] == (-0.2, 0)


def test_alignment_at_every_offset():
    """Session breaks, a half day, a weekend, changed clocks: against a slow search."""
    time, decided = clock(*WEEK), clock(*WEEK, minutes=30)
    share = np.random.default_rng(0).integers(-5, 6, len(decided)) / 5
    for lost in (0, 1, 2, 3, 4, 5, 7):  # the file may begin anywhere
        rows = slice(lost, None)
        found = bounds_of(share, decided + 30 * MINUTE, bars_at(time[rows]))
        wanted = [visible(t, decided, share) for t in time[rows]]
        np.testing.assert_array_equal(found.sum(axis=1), wanted)
        assert (found[:, 0] <= 0).all()
        assert (found[:, 1] >= 0).all()
        assert (found[:, 0] * found[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("opens", "decision"),
    [
        ("2023-11-21 18:20", None),  # the first bar is not over
        ("2023-11-21 18:25", "2023-11-21 18:00"),
        ("2023-11-22 16:55", "2023-11-22 16:30"),  # the session's last
        ("2023-11-23 18:00", "2023-11-22 16:30"),  # across a holiday
        ("2023-11-24 13:10", "2023-11-24 12:30"),  # at an early close the last one is not over
        ("2023-11-26 18:00", "2023-11-24 13:00"),  # but it is after the weekend
        ("2023-11-26 18:25", "2023-11-26 18:00"),
        ("2024-03-10 18:25", "2024-03-10 18:00"),  # on the day that clocks change
    ],
)
def test_breaks_by_hand(opens, decision):
    time, decided = clock(*WEEK), clock(*WEEK, minutes=30)
    number = 1 + np.arange(len(decided))
    found = bounds_of(number / 999, decided + 30 * MINUTE, bars_at(time)).sum(axis=1)
    row = int(np.flatnonzero(time == at(opens))[0])
    wanted = 0 if decision is None else number[decided == at(decision)][0]
    assert round(found[row] * 999) == wanted


def test_nothing_is_admitted_before_the_first_decision():
    time = clock(WEEK[0])
    known = np.array([time[100] + 5 * MINUTE])
    found = bounds_of(np.array([1.0]), known, bars_at(time))
    assert not found[:100].any()
    assert (found[100:] == [0, 1]).all()


# how much


def world(share, position=0, **changes):
    """Return (state at bar 900, market, params) under one mandate throughout."""
    setup = planted_setup(daily_loss=1.0, max_drawdown=1.0, max_leverage=100.0, **changes)
    bars, params = setup.loaded.bars, setup.params
    bounds = bounds_of(np.array([share]), bars.time[:1], bars)
    team, train = setup.system.team, setup.split.train
    market = arrays.build_market(bars, setup.settings, team, train, setup.episode_length, bounds)
    state = core.start(jnp.int32(900), params, tactical)
    controls = state.controls.replace(desired=jnp.int32(position))
    return state.replace(position=jnp.int32(position), controls=controls), market, params


@pytest.mark.parametrize(
    ("share", "short", "least", "most"),
    [
        (0.6, False, 0, 3),
        (0.6, True, 0, 3),
        (-0.6, True, -3, 0),
        (-0.6, False, 0, 0),
        (0.0, True, 0, 0),
        (1.0, False, 0, 6),
        (-1.0, True, -6, 0),
        (1 / 3, False, 0, 2),
        (2 / 3, True, 0, 4),
        (0.2, False, 0, 1),
        (0.1, True, 0, 0),  # less than a contract
    ],
)
def test_share_becomes_contracts(share, short, least, most):
    """max_contracts 6: 0.6 are 3, rounded to flat; without shorts a short mandate admits none."""
    state, market, params = world(share, allow_short=short)
    bounds = account.bounds(state, market, params)
    assert (int(bounds.least), int(bounds.most)) == (least, most)
    # whatever the team does, it never holds more
    step = jax.jit(core.step, static_argnames="team")
    eager = (tactical.BUY_LARGE, 0, tactical.BUY_LARGE)
    keen = (tactical.SELL_LARGE, 0, tactical.SELL_LARGE)
    for actions, end in ((eager, most), (keen, least)):
        moved = state
        for _ in range(4):
            moved, _ = step(moved, jnp.array(actions), market, params, tactical)
        assert int(moved.position) == end


@pytest.mark.parametrize(
    ("held", "share", "left"),
    [(6, 0.6, 3), (6, 0.0, 0), (6, -0.6, 0), (2, 0.6, 2), (-6, -0.6, -3), (-6, 0.6, 0), (-1, 0, 0)],
)
def test_what_is_beyond_is_traded_at_the_next_open(held, share, left):
    state, market, params = world(share, position=held, allow_short=True)
    step = jax.jit(core.step, static_argnames="team")
    after, outcome = step(state, jnp.zeros(3, jnp.int32), market, params, tactical)
    assert int(after.position) == left
    assert int(outcome.fill.traded) == left - held
    assert int(outcome.target) == left


# whole runs


def test_mandate_is_what_the_strategic_run_decides_on_its_own_bars(runs, files, bars):
    """The strategic team on the file of 30-minute bars, its decisions laid beside the steps."""
    trained, _ = record.reopen(RunDirectory(runs[0]))
    setup = evaluate.elsewhere(trained, Source(data=str(files[1])))
    checkpoints = Checkpoints(runs[0] / "checkpoints")
    state = checkpoints.restore(trained)
    checkpoints.close()
    ledger = mandate.team_ledger(setup, mandate.learner.chosen(state), setup.split.test)
    share = ledger.target / setup.settings.max_contracts
    wanted = [visible(time, ledger.time, share) for time in bars.time]
    found, warnings = mandate.mandate(runs[0], bars)
    np.testing.assert_array_equal(found.sum(axis=1), wanted)
    assert len({*share}) > 2
    assert (share < 0).any()
    assert not found[: setup.split.test[0] * 6].any()
    assert [x for x in warnings if "in-sample" in x] == list(warnings)
    under, _ = record.reopen(RunDirectory(runs[1]))
    np.testing.assert_array_equal(under.market.mandate, found.astype(np.float32))


def test_mandate_knows_nothing_of_later_bars(runs, bars):
    """Every bar after t changed, at each offset into a 30-minute bar: the same up to t."""
    known, _ = mandate.mandate(runs[0], bars)
    rng, differ = np.random.default_rng(0), 0
    for last in rng.integers(4_000, BARS - 600, 12) // 12 * 12 + range(12):
        found, _ = mandate.mandate(runs[0], scrambled(bars, last, rng))
        np.testing.assert_array_equal(found[: last + 1], known[: last + 1])
        differ += (found[last + 1 :] != known[last + 1 :]).any()
    assert differ == 12


def test_account_stays_within_the_mandate(runs, bars):
    setup, _ = record.reopen(RunDirectory(runs[1]))
    checkpoints = Checkpoints(runs[1] / "checkpoints")
    state = checkpoints.restore(setup)
    checkpoints.close()
    ledger = mandate.team_ledger(setup, mandate.learner.chosen(state), setup.split["all"])
    first, end = setup.split["all"]
    contracts = np.asarray(setup.market.mandate)[first:end] * setup.settings.max_contracts
    low, high = np.trunc(contracts + np.sign(contracts) * 1e-4).T
    # decided at one close, held at the next
    assert (ledger.target >= low).all()
    assert (ledger.target <= high).all()
    assert (ledger.position[1:] <= high[:-1]).all()
    assert len({*ledger.position}) > 2


def test_what_the_strategic_team_was_trained_on_is_in_sample(runs, bars, capsys, monkeypatch):
    capsys.readouterr()
    split = record.reopen(RunDirectory(runs[1]))[0].split
    assert mandate.seen(str(runs[0]), bars, split.train)
    assert not mandate.seen(str(runs[0]), bars, split.test)
    assert not mandate.seen(None, bars, split.train)
    assert gm_jax("evaluate", runs[1], "--json", "--split", "test") == 0
    assert not json.loads(capsys.readouterr().out)["in_sample"]
    monkeypatch.setattr(mandate, "seen", lambda *_: True)
    assert gm_jax("evaluate", runs[1], "--json", "--split", "test") == 0
    assert json.loads(capsys.readouterr().out)["in_sample"]


def test_evaluated_and_resumed(runs, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    capsys.readouterr()
    assert gm_jax("evaluate", copy, "--json", "--split", "validation") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"]["strategic"] == str(runs[0].resolve())
    assert any("in-sample" in warning for warning in report["warnings"])
    monkeypatch.setattr(training, "write_results", lambda *_: None)
    monkeypatch.setattr(pace, "INTERVAL_SECONDS", 0)
    assert gm_jax("train", "tactical", "--resume", copy, num_episodes=4) == 0
    assert len(RunDirectory.open(copy).history()) == 4


def test_copies_without_direction_have_a_mandate_of_their_own(runs):
    setup, _ = record.reopen(RunDirectory(runs[1]))
    copy = null_test.copy(setup, 0)
    found, _ = mandate.mandate(runs[0], copy.loaded.bars)
    np.testing.assert_array_equal(copy.market.mandate, found.astype(np.float32))
    assert (copy.market.mandate != setup.market.mandate).any()
    assert copy.loaded.digest != setup.loaded.digest


# what is refused or said


def test_runs_that_cannot_give_a_mandate(runs, files, bars, tmp_path, capsys):
    five, thirty = files
    tactical_ = ("train", "tactical", "--data", five, "--out", tmp_path / "run", "--strategic")
    for command, said in (
        ((*tactical_, tmp_path / "nowhere"), "nowhere is no run directory"),
        ((*tactical_, tmp_path), "is no run directory"),
        ((*tactical_, runs[1]), "a run of the system 'tactical'; --strategic wants one with bars"),
        (
            ("train", "strategic", "--data", thirty, "--strategic", runs[0]),
            "--strategic bounds a tactical team",
        ),
    ):
        assert gm_jax(*command) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    longer, _ = resampling.resample(bars, 30)
    with pytest.raises(
        UserError, match="'strategic'; --strategic wants one with bars longer than 30"
    ):
        mandate.mandate(runs[0], longer)
    gone = shutil.copytree(runs[0], tmp_path / "gone")
    shutil.rmtree(gone / "checkpoints")
    assert gm_jax(*tactical_, gone) == 2
    assert "The checkpoints of the run are gone" in capsys.readouterr().err


def test_bars_that_do_not_suit_the_strategic_run(runs, bars):
    with pytest.raises(UserError, match="The bars make 100 of 30 minutes, the strategic run"):
        mandate.mandate(runs[0], bars[0:600])
    with pytest.raises(UserError, match=r"tick_points 0.25, the bars have ticks of 0.5 points"):
        mandate.mandate(runs[0], dataclasses.replace(bars, tick=0.5))


def test_strategic_run_that_changes_is_noticed(runs, files, tmp_path, capsys, monkeypatch):
    """The tactical run names it by path; what it decides is part of what was trained on."""
    monkeypatch.setattr(training, "write_results", lambda *_: None)
    strategic = shutil.copytree(runs[0], tmp_path / "strategic")
    source = Source(data=str(files[0]), strategic=str(strategic))
    settings = config.change(TACTICAL.settings, SETS, "--set")
    training.start(TACTICAL, settings, source, tmp_path / "run").close()
    training.resume(tmp_path / "run").close()
    setup, _ = record.reopen(RunDirectory(strategic))
    checkpoints = Checkpoints(strategic / "checkpoints")
    state = checkpoints.restore(setup)
    turned = jax.tree.map(lambda x: -x, mandate.learner.chosen(state))
    state = state.replace(networks=turned, best=state.best.replace(networks=turned))
    checkpoints.save(setup, state.replace(iteration=state.iteration + 1))
    checkpoints.close()
    for command in (("train", "tactical", "--resume"), ("evaluate",)):
        assert gm_jax(*command, tmp_path / "run") == 2
        assert f"{strategic} no longer decides as it did" in capsys.readouterr().err
    shutil.rmtree(strategic)
    assert gm_jax("train", "tactical", "--resume", tmp_path / "run") == 2
    assert f"{strategic} is no run directory" in capsys.readouterr().err


def test_what_a_person_should_know(runs, bars, monkeypatch):
    """Times of training among the bars, bars that lack some of theirs, an account that closed."""
    later = generate("planted", bars=BARS + 4, minutes=5, seed=9).bars
    years = 5 * 365 * 24 * 60 * MINUTE // (7 * 24 * 60 * MINUTE) * (7 * 24 * 60 * MINUTE)
    later = dataclasses.replace(later, time=later.time + years)
    _, warnings = mandate.mandate(runs[0], later)
    assert warnings == (
        "the strategic team's 30-minute bars: 1 bars lack some of their source bars: holes, or an "
        "end of the file",
    )
    earlier = dataclasses.replace(bars, time=bars.time - years)
    assert mandate.mandate(runs[0], earlier)[1] == ()
    run = mandate.team_ledger

    def ruined(*arguments):
        ledger = run(*arguments)
        closed = (np.arange(len(ledger.time)) >= 5).astype(int)
        return dataclasses.replace(ledger, closed=closed)

    monkeypatch.setattr(mandate, "team_ledger", ruined)
    _, (warning,) = mandate.mandate(runs[0], earlier)
    assert "The strategic account was closed by drawdown limit at 19" in warning


def test_resampled_bars_are_those_of_the_strategic_run(bars, files):
    """What the mandate is computed on is what `data resample` wrote for its training."""
    setup_bars, _ = resampling.resample(bars, STRATEGIC.minutes)
    read, _ = mandate.load(Source(data=str(files[1])), STRATEGIC.settings, 30).bars, None
    for name in ("time", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(setup_bars, name), getattr(read, name))
