"""Walk-forward: each fold knows its past alone, and the pieces make one account."""

import dataclasses
import itertools
import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax import cli, config
from gm_jax.env import direct
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.market import features, split
from gm_jax.report import policies
from gm_jax.report.backtest import backtest
from gm_jax.run import members as run_members
from gm_jax.run import pace, results, training, walk_forward
from gm_jax.run.directory import RunDirectory
from gm_jax.run.evaluation import team_policy
from gm_jax.run.members import StoppedEarlyError, train_members
from gm_jax.run.oracles import fit_oracle
from gm_jax.run.setup import MAX_SEGMENTS, prepare
from gm_jax.run.source import Source, load
from gm_jax.run.walk_forward import fold_setups
from gm_jax.systems import STRATEGIC, TACTICAL
from tests.env.test_no_lookahead import scrambled
from tests.mappo.problems import SMALL, planted_setup
from tests.mappo.test_members import BUSY, compile_once, compiled_in_haste, launches
from tests.run.schema import BASELINES, REPORT
from tests.run.test_training import TINY


FOLDS = 3
OF_ONE_TEAM = {"agent_contributions", "null_test"}
CHANCE = {"n_trials", "deflated_sharpe", "pbo"}
FITTED = ("starts", "num_starts", "mean", "scale")


def problem(**changes):
    return planted_setup(walk_forward=FOLDS, **(BUSY | changes))


def strategic(bars=None):
    """Return a strategic problem with three folds, whose team has a law."""
    settings = STRATEGIC.settings.replace(
        **(SMALL | {"market_bars": 6_000, "layer_norm": 0, "walk_forward": FOLDS})
    )
    loaded = load(Source(market="two_state", seed=0), settings, STRATEGIC.minutes)
    return prepare(STRATEGIC, settings, dataclasses.replace(loaded, bars=bars or loaded.bars))


# folds


def test_folds_are_fitted_on_their_own_training_bars():
    setup = strategic()
    bars, folds = setup.loaded.bars, fold_setups(setup)
    raw = features.compute(setup.settings.features, bars)
    signals = features.compute(setup.system.team.signal_names(30), bars)
    for fold in folds:
        first, end = fold.split.train
        seen = raw[first:end]
        np.testing.assert_allclose(fold.market.mean, seen.mean(axis=0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(fold.market.scale, seen.std(axis=0), rtol=1e-5)
        law = setup.system.team.fit_law(signals, fold.split.train, 30)
        jax.tree.map(np.testing.assert_array_equal, fold.market.law, law)
        starts = np.asarray(fold.market.starts[: int(fold.market.num_starts)])
        room = np.flatnonzero(split.clean_runs(bars, fold.split.train) >= fold.episode_length)
        np.testing.assert_array_equal(starts, room)
        assert starts.max() + fold.episode_length < end
        assert fold.market.features is setup.market.features
        first, steps = split.segments(bars, fold.split.validation, MAX_SEGMENTS)
        missing = MAX_SEGMENTS - len(steps)
        assert missing > 0
        np.testing.assert_array_equal(fold.segments.steps, [*steps, *[0] * missing])
        np.testing.assert_array_equal(fold.segments.first[: len(steps)], first)
        assert (fold.segments.first < fold.split.validation[1]).all()
    means = {float(fold.market.mean[0]) for fold in folds}
    laws = {float(fold.market.law.deviation[-1]) for fold in folds}
    assert len(means) == len(laws) == FOLDS


def test_later_bars_change_nothing_of_a_fold():
    """Every bar after a fold's last training bar changed: its own fit is bit-equal."""
    setup = strategic()
    rng = np.random.default_rng(0)
    before = fold_setups(setup)
    for number, fold in enumerate(before):
        last = fold.split.train[1] - 1
        other = fold_setups(strategic(scrambled(setup.loaded.bars, last, rng)))
        for name in (*FITTED, "law"):
            mine, theirs = (getattr(x.market, name) for x in (fold, other[number]))
            jax.tree.map(np.testing.assert_array_equal, mine, theirs)
        assert other[number].split == fold.split
        for later in range(number + 1, FOLDS):
            assert (other[later].market.mean != before[later].market.mean).any()


def test_folds_have_the_same_length_of_training_and_adjoin():
    setup = problem()
    folds = fold_setups(setup)
    one = folds[0]
    for fold in folds:
        assert fold.config == one.config
        jax.tree.map(np.testing.assert_array_equal, fold.hyper, one.hyper)
        jax.tree.map(np.testing.assert_array_equal, fold.params, one.params)
        assert int(fold.hyper.num_updates) == 4 * 2
        assert fold.segments.steps.shape == one.segments.steps.shape
    spans = [fold.split.test for fold in folds]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] == len(setup.loaded.bars)
    for fold in folds:
        assert fold.split.train[0] == folds[0].split.train[0]
        assert fold.split.train[1] < fold.split.validation[0]
        assert fold.split.validation[1] < fold.split.test[0]


def test_windows_fit_the_shortest_fold():
    """The first fold has no 1,000 bars: all play the windows it has room for, as often."""
    setup = problem(episode_length=1_000, rollout_length=200)
    assert setup.episode_length == 1_000
    folds = fold_setups(setup)
    for fold in folds:
        assert (fold.episode_length, fold.config.rollout_length) == (600, 200)
        assert fold.config.num_rollouts == 3
        assert int(fold.params.episode_length) == 600
        assert int(fold.hyper.num_updates) == 4 * 3
        assert int(fold.market.num_starts) > 0
    assert np.diff(folds[0].split.train) < 1_000 < np.diff(folds[1].split.train)


# the joined account


@pytest.fixture(scope="module", autouse=True)
def chunks():
    """Two folds a program, the last filled up; nothing is compiled twice."""
    with pytest.MonkeyPatch.context() as patch, compiled_in_haste():
        patch.setattr(run_members, "_compile", compile_once)
        patch.setattr(run_members, "MOST", 2)
        patch.setattr(pace, "INTERVAL_SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """(setup, the folds' networks, report, ledgers, borders) of a walk-forward."""
    setup, out = problem(), tmp_path_factory.mktemp("walked")
    folds, networks = fold_setups(setup), []
    for part in train_members(RunDirectory(out), "again", range(FOLDS), folds.__getitem__):
        each = range(len(part.numbers))
        networks += [jax.tree.map(lambda x, m=m: x[m], part.networks) for m in each]
    found = walk_forward.walk_forward(RunDirectory(out), setup)
    return setup, networks, *found


def test_joined_account_is_the_pieces_one_by_one(walked):
    """Each piece by a backtest of its own, from the equity that the last one left."""
    setup, networks, report, ledgers, borders = walked
    joined, equity, at = ledgers["team"], int(setup.params.start_equity), 0
    net = []
    for number, fold in enumerate(fold_setups(setup)):
        policy, params = team_policy(fold.config), fold.params
        params = params.replace(start_equity=jnp.int32(equity))
        world = (fold.loaded.bars, fold.split.test, fold.market, params, fold.system.team)
        piece = backtest(policy, networks[number].actor, *world)
        rows = slice(at, at + len(piece.time))
        for column in ("time", "position", "target", "equity", "gross", "traded", "actions"):
            np.testing.assert_array_equal(getattr(joined, column)[rows], getattr(piece, column))
        assert borders[number] == piece.time[0]
        assert joined.position[rows][0] == 0
        net.append((piece.final_equity - equity) / 100)
        assert report["folds"][number]["net_pnl"] == pytest.approx(net[-1], abs=1e-6)
        equity, at = piece.final_equity, at + len(piece.time)
    assert at == len(joined.time)
    assert joined.check() is joined
    assert (joined.start_equity, joined.final_equity) == (int(setup.params.start_equity), equity)
    assert report["net_pnl"] == pytest.approx(sum(net), abs=1e-6)
    assert report["net_pnl"] == pytest.approx(sum(f["net_pnl"] for f in report["folds"]), abs=1e-6)
    assert np.count_nonzero(net) > 1  # teams that trade


def test_report_says_what_was_tested_when(walked):
    setup, _, report, ledgers, _ = walked
    time = np.datetime_as_string(setup.loaded.bars.time.astype("datetime64[ns]"), unit="s")
    for fold, part in zip(report["folds"], fold_setups(setup), strict=True):
        for name in ("train", "validation", "test"):
            first, end = part.split[name]
            assert fold[name] == [f"{time[first]}Z", f"{time[end - 1]}Z"]
    first, end = fold_setups(setup)[0].split.test[0], len(setup.loaded.bars)
    assert report["bars"] == end - first == sum(fold["bars"] for fold in report["folds"])
    assert report["sessions"] == sum(fold["sessions"] for fold in report["folds"])
    # baselines run through the whole as one account
    for name in ("buy_and_hold", "flat", "random_same_turnover", "random"):
        assert len(ledgers[name].time) == end - first
        assert ledgers[name].start_equity == ledgers["team"].start_equity
    world = (setup.loaded.bars, (first, end), setup.market, setup.params)
    plan = np.full(len(setup.loaded.bars), int(ledgers["buy_and_hold"].position[1]), np.int32)
    held = backtest(policies.planned, plan, *world, direct)
    assert report["baselines"]["buy_and_hold"]["net_pnl"] == pytest.approx(
        (held.final_equity - held.start_equity) / 100
    )


def test_report_has_what_a_split_has(walked):
    """But for what one team alone has, and what the trials file says: that is looked at below."""
    setup, _, report, _, _ = walked
    assert set(report) >= REPORT - OF_ONE_TEAM - CHANCE
    assert set(report["baselines"]) >= BASELINES
    aim = report["targets"]["reward"]
    assert (aim["split"], aim["iterations"]) == ("walk_forward", setup.settings.num_episodes)
    assert aim["value"] == np.mean(report["episode_rewards"])
    # the first fold is too short for one
    assert report["oracle_sharpe"] is None
    assert report["oracle_reason"].startswith("the training split is too short")


def test_oracle_is_fitted_before_all_tests(monkeypatch, tmp_path):
    """One account beside the joined one; the teams are untrained here."""
    setup = strategic()
    folds = fold_setups(setup)
    networks = [
        learner.init_state(jax.random.key(i), fold.market, fold.params, fold.config).networks
        for i, fold in enumerate(folds)
    ]
    networks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    trained = SimpleNamespace(setups=folds, networks=networks)
    monkeypatch.setattr(walk_forward, "train_members", lambda *_: [trained])
    report, ledgers, _ = walk_forward.walk_forward(RunDirectory(tmp_path), setup)
    whole = (folds[0].split.test[0], len(setup.loaded.bars))
    world = (setup.loaded.bars, whole, setup.market, setup.params, setup.system.team)
    known = backtest(policies.oracle, fit_oracle(folds[0]), *world)
    np.testing.assert_array_equal(ledgers["oracle"].equity, known.equity)
    assert report["oracle_reason"] is None
    assert report["oracle_sharpe"] > 0
    assert set(report["targets"]) == {"sharpe_ratio", "max_drawdown"}


def test_a_fold_that_was_closed_early_is_named(walked):
    """The joined account goes on, and is not closed."""
    report = dict(walked[2])
    assert "closed early" not in results.headline(report)
    report["folds"] = [dict(fold) for fold in report["folds"]]
    report["folds"][1]["closed_early"] = {"reason": "ruin", "time": "2024-01-01T00:00:00Z"}
    assert results.headline(report).endswith("; fold 2 closed early by ruin")


def test_interrupted_folds_are_not_trained_again(walked, tmp_path, monkeypatch):
    """Two chunks of 4 iterations: stopped in the second, the first is still known."""
    setup, _, report, ledgers, borders = walked
    directory = RunDirectory(tmp_path)
    for at in (3, 4):
        with monkeypatch.context() as patch:
            launches(patch, at, signal.SIGTERM)
            with pytest.raises(StoppedEarlyError):
                walk_forward.walk_forward(directory, setup)
    left = launches(monkeypatch)
    again = walk_forward.walk_forward(directory, setup)
    assert len(left) == 8 - 3 - 4
    assert again[0] == report
    assert again[2] == borders
    np.testing.assert_array_equal(again[1]["team"].equity, ledgers["team"].equity)


# runs


def gm_jax(*arguments):
    return cli.main([*map(str, arguments)])


def test_too_many_folds_are_refused_before_anything_is_done(tmp_path, capsys, monkeypatch):
    def trained(*_):
        raise AssertionError("it began to train")

    monkeypatch.setattr(learner, "init_state", trained)
    sets = [x for a in TINY for x in ("--set", a)]
    for count, said in (
        (12, "bars of warm-up, expected at least 52 for 12 folds"),
        (1, "`walk_forward` is 1, expected 0 for none"),
        (51, "`walk_forward` is 51, expected at most 50"),
    ):
        command = ("train", "tactical", "--walk-forward", count, "--out", tmp_path / "run")
        assert gm_jax(*command, *sets) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_windows_too_short_for_a_fold_are_refused_early():
    """The whole training split has room for the windows, the first fold has none."""
    setup = problem()
    hole = np.zeros(len(setup.loaded.bars), bool)
    hole[:1_700:2] = True
    bars = dataclasses.replace(setup.loaded.bars, hole=hole)
    loaded = dataclasses.replace(setup.loaded, bars=bars)
    assert prepare(TACTICAL, setup.settings.replace(walk_forward=0), loaded).episode_length == 100
    with pytest.raises(UserError, match="has no three bars in a row"):
        prepare(TACTICAL, setup.settings, loaded)
    # windows of odd lengths that no longer divide into minibatches
    hole[:1_700] = False
    hole[:1_700:8] = True
    with pytest.raises(UserError, match="`num_minibatches` is 16, expected a divisor"):
        prepare(TACTICAL, setup.settings.replace(num_minibatches=16), loaded)


def test_folds_are_added_to_a_finished_run(tmp_path, monkeypatch, capsys):
    """Beside whatever else is reported, which is left out here."""
    out = tmp_path / "run"
    settings = config.change(TACTICAL.settings, config.parse_assignments(TINY), "--set")
    settings = settings.replace(**BUSY | {"num_episodes": 4})
    monkeypatch.setattr(training, "write_results", lambda *_: {"splits": {"test": "as it was"}})
    monkeypatch.setattr(training, "_export", lambda _: None)  # its README would read the whole
    training.train(training.start(TACTICAL, settings, Source(market="planted"), out))
    learned = (out / "checkpoints" / "4" / "SHA256SUMS").read_text()
    count = launches(monkeypatch)
    for _ in range(2):  # the second time it is known
        assert gm_jax("train", "tactical", "--resume", out, "--walk-forward", FOLDS) == 0
        assert len(count) == 8
        found = json.loads((out / "validation_results.json").read_text())
        assert found["splits"] == {"test": "as it was"}
        report = found["walk_forward"]
        assert len(report["folds"]) == FOLDS
        assert set(report) >= REPORT - OF_ONE_TEAM
        assert report["n_trials"] == 1
        (line,) = (tmp_path / "trials.jsonl").read_text().splitlines()
        assert set(json.loads(line)["sharpe"]) == {f"walk_forward_{FOLDS}"}
        assert (out / "plots" / "walk_forward.png").stat().st_size > 1_000
        assert "walk-forward  after-cost Sharpe" in capsys.readouterr().err
        assert not (out / walk_forward.NAME).exists()
    assert (out / "checkpoints" / "4" / "SHA256SUMS").read_text() == learned
