"""Sweeps: what one program trains, resumable to the bit, ranked without the test split."""

import dataclasses
import json
import shutil
import signal
from dataclasses import fields

import jax
import numpy as np
import pytest

from gm_jax import cli
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.types import Hyper
from gm_jax.report import sweep_plots
from gm_jax.report.significance import deflated_sharpe, pbo, session_sharpe
from gm_jax.run import members as run_members
from gm_jax.run import (
    pace,
    results,
    sweep,
    sweep_members,
    sweep_plan,
    sweep_report,
    training,
    trials,
)
from gm_jax.run.directory import RunDirectory
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.run.sweep import Sweep
from gm_jax.run.sweep_plan import Plan, combine, groups, label, parse_grid
from gm_jax.settings import Settings
from gm_jax.systems import STRATEGIC
from tests.mappo.test_members import assert_same, compile_once, compiled_in_haste
from tests.run.brief import report_of_the_team_alone


# a small strategic problem: sessions of 46 bars, so that a few thousand give a Sharpe ratio
WORLD = {
    **{"hidden_sizes": (16,), "layer_norm": 0, "num_envs": 4, "episode_length": 100},
    **{"rollout_length": 50, "num_minibatches": 2, "num_epochs": 1, "num_episodes": 4},
    **{"validate_every": 2, "split": (0.4, 0.3, 0.3), "market_bars": 4_000},
    "features": ("return_8", "volatility_16", "rsi_14"),
    # teams that trade
    **{"allow_short": True, "initial_neutral": 0.03, "impact": 0.1},
}
COSTS = {"commission_usd": ("0.25", "5")}
GRID = {"lr_actor": ("1e-2", "1e-3"), **COSTS}


def plan(grid=None, seeds=2, system=STRATEGIC, **changes):
    settings = system.settings.replace(**(WORLD | changes))
    return Plan(system, settings, GRID if grid is None else grid, seeds, Source(market="planted"))


def gm_jax(*arguments):
    return cli.main([*map(str, arguments)])


def refused(capsys, *arguments):
    """Return the one message with which a sweep is refused."""
    assert gm_jax("sweep", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("gm-jax:") == 1
    return err


# grids


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("lr_actor=1e-4,3e-4,1e-3", "lr_actor", ["1e-4", "3e-4", "1e-3"]),
        (" clip_eps = .1 , .2", "clip_eps", [".1", ".2"]),
        ("hidden_sizes=[64,64]", "hidden_sizes", ["[64,64]"]),
        ("hidden_sizes=[64,64],[128], [8,8]", "hidden_sizes", ["[64,64]", "[128]", "[8,8]"]),
        ("market.kappa=0.1,0.2", "market.kappa", ["0.1", "0.2"]),
    ],
)
def test_lists_are_not_split_inside_brackets(text, key, values):
    assert parse_grid([text]) == {key: values}


@pytest.mark.parametrize(
    "text", ["", "lr_actor", "lr_actor=", "=1", "lr_actor=1,,2", "lr_actor=1,", "split=[.7,.2,.1"]
)
def test_what_is_no_grid(text):
    with pytest.raises(UserError, match="expected key=value,value"):
        parse_grid([text])


def test_last_key_changes_fastest_and_values_have_their_types():
    asked = plan({"hidden_sizes": ["[8,8]", "[4]"], "allow_short": ["true", "false"]}, seeds=1)
    found = [(one.hidden_sizes, one.allow_short) for one in combine(asked)]
    assert found == [((8, 8), True), ((8, 8), False), ((4,), True), ((4,), False)]
    assert label({"hidden_sizes": (8, 8), "lr": 3e-4, "b": True}) == (
        "hidden_sizes=[8,8] lr=0.0003 b=true"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "lr_acto=1,2"], "Unknown setting `lr_acto` (--grid). Did you mean `lr_actor`?"),
        (["--grid", "lr_actor=1e-3,x"], "`lr_actor` is 'x', expected a number (--grid)"),
        (["--grid", "lr_actor=1e-3,-1"], "`lr_actor` is -1.0, expected a number above 0"),
        (["--grid", "num_envs=8,2.5"], "`num_envs` is '2.5', expected a whole number"),
        (["--grid", "critic=central,lokal"], "`critic` is 'lokal', expected central or local"),
        (["--grid", "num_minibatches=4,3"], "`num_minibatches` is 3, expected a divisor of"),
        (["--grid", "lr_actor=", "--seeds", 2], "--grid lr_actor=: expected key=value"),
        (["--grid", "gamma=.9,.99", "--grid", "gamma=.8"], "--grid gamma is given twice"),
        (["--grid", "gamma=.9,0.90"], "gamma=0.90 is the same as gamma=.9; give each value once"),
        (["--grid", "hidden_sizes=64,64"], "give each value once, lists in brackets: [64,64]"),
        (
            ["--grid", "gamma=.9,.99", "--set", "gamma=.5"],
            "`gamma` is given by --set and by --grid",
        ),
        (["--grid", "seed=1,2"], "--grid seed: each setting is trained with --seeds K seeds"),
        (["--grid", "validate_every=1,2"], "--grid validate_every: the score is the best of all"),
        (["--grid", "null_copies=0,9"], "an analysis is of one run"),
        (["--set", "null_copies=9", "--seeds", 2], "`null_copies` in a sweep: an analysis is of"),
        (["--grid", "target_reward=1,2"], "--grid target_reward: a report is held to it"),
        (["--grid", "tick_points=.25,.5"], "--grid tick_points: it is a fact about the bars"),
        (["--grid", "reward_stance=1,2"], "no agent of the tactical team receives this term"),
        (["--grid", "market.kapa=.1,.2"], "no parameter 'kapa', did you mean 'kappa'"),
        (["--grid", "gamma=.9"], "The sweep has 1 members (1 settings × 1 seeds), expected 2 to"),
        ([], "expected 2 to 10,000; give --grid key=value,value or --seeds K"),
        (["--seeds", 0], "--seeds is 0, expected a whole number above 0"),
        (["--seeds", 10_001], "10,001 members"),
        (["--seeds", 2, "--tz", "UTC"], "--tz describes a file"),
    ],
)
def test_what_cannot_be_swept_is_one_clear_message(tmp_path, capsys, arguments, said):
    found = refused(capsys, "tactical", "--out", tmp_path / "s", *arguments)
    assert said in found
    assert not (tmp_path / "s").exists()


def test_bars_of_a_file_have_no_market_bars():
    asked = dataclasses.replace(plan({"market_bars": [1, 2]}), source=Source(data="bars.csv"))
    with pytest.raises(UserError, match="market_bars: it is of a generated market"):
        combine(asked)


def test_system_and_resumed_sweep_are_checked(tmp_path, capsys):
    assert "did you mean tactical" in refused(capsys, "tacticl", "--seeds", 2)
    assert "is no sweep: it has no sweep.json" in refused(
        capsys, "tactical", "--resume", tmp_path / "nothing"
    )
    changed = refused(capsys, "tactical", "--resume", tmp_path, "--grid", "gamma=.9,.8")
    assert "--grid cannot be changed" in changed
    (tmp_path / "sweep.json").write_text("{}")
    found = refused(capsys, "tactical", "--resume", tmp_path)
    assert "is not what `gm-jax sweep` writes" in found


# programs

OTHER = {
    **{"seed": 1, "critic": "local", "precision": "bfloat16", "value_loss": "squared"},
    **{"instrument": "MNQ", "allow_short": False, "random_start": False},
    **{"hidden_sizes": (8, 8), "features": ("return_8", "rsi_14"), "split": (0.5, 0.3, 0.2)},
    **{"layer_norm": 1, "num_episodes": 3, "episode_length": 50, "rollout_length": 25},
    **{"market_bars": 3_000, "num_minibatches": 4, "lots_small": 2, "start_equity_usd": 5e5},
    **{"purge_bars": 30, "embargo_sessions": 2, "point_value_usd": 2.0, "impact": 0.3},
    **{"initial_neutral": 0.5, "spread_ticks_other": 3, "num_envs": 8, "num_epochs": 2},
    **{
        "risk_aversion": 0.1,
        "stop_atr": 1.0,
        "commission_usd": 1.0,
        "tick_points": 0.25,
        "max_contracts": 6,
        "lots_large": 3,
    },
}
READ = {f.name for f in fields(Hyper)} - {"num_updates", "validate_every"} | {
    *("point_value_usd", "commission_usd", "start_equity_usd", "lots_small", "lots_large"),
    *("max_contracts", "allow_short", "random_start", "spread_ticks_regular", "impact"),
    *("spread_ticks_other", "max_leverage", "daily_loss", "max_drawdown", "ruin", "instrument"),
    *("maintenance_margin", "stop_atr", "risk_aversion", "reward_drawdown", "reward_stance"),
}


def other(key):
    """Return another value of a setting."""
    value = getattr(plan().base, key)
    if key in OTHER:
        return OTHER[key]
    return value * 0.9 if isinstance(value, float) else value + 1


def test_one_program_trains_whatever_is_only_read():
    """Costs, limits, rewards and rates need no program of their own, all else does."""
    keys = {f.name for f in fields(Settings)} - {"market_parameters"}
    keys -= {*sweep_plan.NOT_SWEPT, "reward_shortfall"}  # which no strategic agent receives
    found = set()
    for key in sorted(keys):
        base = plan(market_bars=2_500)
        grid = {key: [getattr(base.base, key), other(key)]}
        parts = groups(dataclasses.replace(base, grid=grid))
        assert sum(len(part.numbers) for part in parts) == 2
        if len(parts) == 1:
            found.add(key)
            one, two = parts[0].setups
            assert one.config == two.config
            assert one.market is two.market
            assert one.segments is two.segments
            assert run_members.members.axes_of([(one.params, one.hyper), (two.params, two.hyper)])
    assert found == READ


def test_settings_are_gathered_by_program():
    parts = groups(plan({"hidden_sizes": ["[16]", "[8]"], "gamma": [".9", ".8", ".7"]}))
    assert [part.numbers for part in parts] == [(0, 1, 2), (3, 4, 5)]
    gammas = [[float(one.hyper.gamma) for one in part.setups] for part in parts]
    np.testing.assert_allclose(gammas, [[0.9, 0.8, 0.7]] * 2)
    for part in parts:
        assert len({id(one.hyper.clip_eps) for one in part.setups}) == 1
        assert len({id(one.hyper.gamma) for one in part.setups}) == 3


# ranking


def result(score, test=0.0, failed=None, sessions=range(40), seed=0, digest="d"):
    """Return what is kept of a member."""
    rng = np.random.default_rng(seed)
    split = dict.fromkeys(sweep_report.FIGURES) | {"max_drawdown": 0.1, "net_pnl": 1.0}
    split |= {"sessions": [*sessions], "returns": rng.normal(0, 0.01, len(sessions)).tolist()}
    splits = {"validation": split | {"sharpe_ratio": score}, "test": split | {"sharpe_ratio": test}}
    return {
        **{"failed": failed, "selection_score": None if failed else score, "best_iteration": 2},
        **{"data_sha256": digest, "splits": {} if failed else splits},
    }


def reported(scores, **how):
    """Return the report of settings with these scores of their seeds; NaN stands for broken."""
    members = [
        {"member": n, "setting": setting, "seed": seed, "settings": {"gamma": setting}}
        for n, (setting, seed) in enumerate(
            (a, b) for a, own in enumerate(scores) for b in range(len(own))
        )
    ]
    every = [score for own in scores for score in own]
    found = [
        result(x, failed="NaN" if np.isnan(x) else None, seed=n, **how) for n, x in enumerate(every)
    ]
    return sweep_report.report(members, found, {"d": []})


def test_settings_are_ranked_by_their_mean_score():
    found = reported([[1, 2], [5, 0], [2, 3], [-1, -2]])
    assert found["ranking"] == [2, 1, 0, 3]  # equal means: the smaller deviation first
    assert (found["best_setting"], found["best_member"]) == (2, 5)
    best = found["settings"][0]["selection_score"]
    assert best == {"mean": 2.5, "std": pytest.approx(0.5**0.5), "min": 2, "max": 3, "known": 2}
    assert reported([[1], [2], [2]])["ranking"] == [1, 2, 0]  # then the order of the grid
    assert reported([[1]])["settings"][0]["selection_score"]["std"] is None


def test_setting_that_broke_down_comes_last():
    nan = float("nan")
    found = reported([[9, nan], [1, 0], [nan, nan]])
    assert found["ranking"] == [1, 0, 2]
    assert [row["failed"] for row in found["settings"]] == [0, 1, 2]
    assert found["settings"][2]["selection_score"]["mean"] is None
    assert "broke down" in [*sweep_report.lines(found)][3]
    assert reported([[nan], [nan]])["best_member"] is None


def test_overfitting_needs_eight_members_on_the_same_sessions():
    seven, eight = [result(0, seed=n) for n in range(7)], [result(0, seed=n) for n in range(8)]
    few = sweep_report.overfitting(seven, "test")
    assert (few["value"], few["reason"]) == (None, "7 members, at least 8 needed")
    found = sweep_report.overfitting(eight, "test")
    matrix = np.array([one["splits"]["test"]["returns"] for one in eight])
    assert (found["value"], found["sessions"]) == (pbo(matrix), 40)
    assert 0 < found["value"] < 1
    # another split of one member: only what all were played on
    later = [*eight[:7], result(0, seed=7, sessions=range(10, 50))]
    matrix = [[*one["splits"]["test"]["returns"]] for one in later]
    common = np.array([*[own[10:] for own in matrix[:7]], matrix[7][:30]])
    found = sweep_report.overfitting(later, "test")
    assert (found["value"], found["sessions"]) == (pbo(common), 30)
    broken = sweep_report.overfitting([*seven, result(0, failed="NaN")], "test")
    assert broken["members"] == 7
    elsewhere = sweep_report.overfitting([*seven, result(0, digest="e")], "test")
    assert elsewhere["value"] is None
    assert "not trained on the same bars" in elsewhere["reason"]


def test_picture_is_drawn_whatever_is_missing():
    nan = float("nan")
    for scores in (
        [[1, 2, 1.5], [0, 0, 0], [nan, nan, nan]],
        [[0]],
        [[float(n)] for n in range(60)],
    ):
        found = reported(scores)
        rows = found["settings"]
        names = [label(row["settings"]) for row in rows]
        figure = sweep_plots.settings_side_by_side(rows, found["members"], names, "sweep")
        figure.canvas.draw()
        left = figure.axes[0]
        assert len(left.get_yticklabels()) == min(len(scores), sweep_plots.MOST_ROWS)
        assert left.get_yticklabels()[0].get_text() == names[0]


# whole sweeps

SETS = [part for key, value in WORLD.items() for part in ("--set", label({key: value}))]
GRIDS = [x for key, values in GRID.items() for x in ("--grid", f"{key}={','.join(values)}")]


@pytest.fixture(scope="module", autouse=True)
def plain():
    """Sweeps that are compiled in haste, three members a program, and export and draw no run."""
    with pytest.MonkeyPatch.context() as patch, compiled_in_haste():
        report_of_the_team_alone(patch.setattr)
        patch.setattr(run_members, "_compile", compile_once)
        patch.setattr(run_members, "MOST", 3)
        yield


@pytest.fixture
def light(monkeypatch):
    """Best members that are not evaluated as runs; an iteration a launch."""
    monkeypatch.setattr(sweep, "finish", lambda run, began: None)
    monkeypatch.setattr(pace, "INTERVAL_SECONDS", 0)


def begin(out, **how):
    """Return a sweep of eight members, begun after another trial on the same bars."""
    out.parent.mkdir(exist_ok=True)
    found = sweep.start(plan(**how), out)
    record_one(out)
    return found


def record_one(out):
    digest = groups(plan())[0].setups[0].loaded.digest
    before = trials.trial(out, "strategic", digest, {}, {"validation": 0.3, "test": -0.2})
    trials.record(trials.beside(out), before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of eight members that nothing disturbed, after another trial on the same bars."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    record_one(out)
    assert gm_jax("sweep", "strategic", *GRIDS, "--seeds", 2, *SETS, "--out", out, "--json") == 0
    return out


def content(out):
    return json.loads((out / "sweep.json").read_text())


def test_sweep_directory_is_whole(whole):
    found = content(whole)
    assert {path.name for path in whole.iterdir()} == {"sweep.json", "best", "plots", ".lock"}
    assert (whole / "plots/sweep.png").stat().st_size > 10_000
    assert found["finished"]
    assert [m["member"] for m in found["members"]] == [*range(8)]
    assert [m["seed"] for m in found["members"]] == [0, 1] * 4
    assert found["members"][2]["settings"] == {"lr_actor": 1e-2, "commission_usd": 5.0}
    assert found["asked"]["grid"] == {"lr_actor": [1e-2, 1e-3], "commission_usd": [0.25, 5.0]}
    assert [row["rank"] for row in found["settings"]] == [1, 2, 3, 4]
    assert [row["setting"] for row in found["settings"]] == found["ranking"]
    scores = [row["selection_score"]["mean"] for row in found["settings"]]
    assert scores == sorted(scores, reverse=True)
    assert len({m["selection_score"] for m in found["members"]}) == 8
    for member in found["members"]:
        assert member["test"]["sharpe_ci95"][0] < member["test"]["sharpe_ratio"]
    for split in results.REPORTED:
        assert found["pbo"][split]["members"] == 8
        assert 0 <= found["pbo"][split]["value"] <= 1


def test_best_is_a_run_like_any_other(whole, tmp_path, capsys):
    """Evaluated, it gives what the table says; taken up again, it is finished."""
    found = content(whole)
    best = found["members"][found["best_member"]]
    assert best["setting"] == found["settings"][0]["setting"]
    run = whole / "best"
    names = {path.name for path in run.iterdir()}
    assert {"model_config.json", "metrics.jsonl", "checkpoints", "training_statistics.json"} < names
    rows = RunDirectory.open(run).history()
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    statistics = json.loads((run / "training_statistics.json").read_text())
    assert statistics["selection_score"] == best["selection_score"]
    assert statistics["env_steps"] == 4 * 4 * 100
    assert statistics["compile_seconds"] is None
    stored = json.loads((run / "validation_results.json").read_text())["splits"]
    for split in results.REPORTED:
        assert gm_jax("evaluate", run, "--split", split, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        for one in (report, stored[split]):
            for key, value in best[split].items():  # a mean of trials may be added up otherwise
                near = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                assert one[key] == near, key
            assert one["pbo"] == found["pbo"][split]["value"]
            assert one["n_trials"] == 9
    copy = shutil.copytree(whole, tmp_path / "copy") / "best"
    assert gm_jax("train", "strategic", "--resume", copy) == 0
    again = json.loads((copy / "validation_results.json").read_text())["splits"]["test"]["pbo"]
    assert again == found["pbo"]["test"]["value"]


def test_every_member_and_every_earlier_trial_counts(whole):
    """Deflated by hand: nine trials, their Sharpe ratios among them."""
    found = content(whole)
    setup = groups(plan())[0].setups[0]
    known = trials.known(trials.beside(whole), setup.loaded.digest, "strategic")
    assert len(known) == 9
    assert {m["n_trials"] for m in found["members"]} == {9}
    assert sum(one.run == "sweep/best" for one in known) == 1
    assert not (whole / "trials.jsonl").exists()
    assert trials.beside(whole / "other") == whole / "trials.jsonl"  # any run that lies there
    best = found["members"][found["best_member"]]
    run = training.resume(whole / "best")
    kept = sweep_members.figures(run.setup, learner.chosen(run.state), "test")
    run.close()
    sharpes = [one.sharpe["test"] for one in known]
    assert session_sharpe(kept["returns"]) in sharpes
    assert best["test"]["deflated_sharpe"] == deflated_sharpe(kept["returns"], sharpes)
    assert best["test"]["deflated_sharpe"] < best["test"]["probabilistic_sharpe"]


def test_finished_sweep_is_told_again(whole, capsys):
    before = (whole / "sweep.json").read_bytes()
    assert gm_jax("sweep", "strategic", "--resume", whole) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[1].startswith("   1  lr_actor=")
    assert "the test split was not looked at" in told
    assert "after 9 trials on these bars" in told
    assert gm_jax("sweep", "strategic", "--resume", whole, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.items() >= content(whole).items()
    assert summary["sweep_dir"] == str(whole)
    assert (whole / "sweep.json").read_bytes() == before
    assert "is a strategic sweep" in refused(capsys, "tactical", "--resume", whole)
    used = refused(capsys, "strategic", "--seeds", 2, "--out", whole)
    assert "is not empty" in used
    assert "--resume" in used


def test_member_begins_as_a_single_run(whole):
    """Key, bars and settings are those of `gm-jax train` with the same seed."""
    found, single = begin(whole.parent / "another"), plan(lr_actor=1e-3, seed=1).base
    found.directory.release()
    setup = found.setup(5)
    assert setup.settings == single.replace(commission_usd=0.25)
    other = prepare(STRATEGIC, setup.settings, load(Source(market="planted"), single, 30))
    for one, two in zip(*(map(run_members.arguments, (setup, other))), strict=True):
        assert_same(one, two)
    assert setup.config == other.config
    assert_same(sweep._key(5, setup), jax.random.key(1))


@pytest.mark.parametrize(("at", "number"), [(4, signal.SIGTERM), (10, signal.SIGINT)])
def test_stopped_and_resumed_equals_undisturbed(
    whole, tmp_path, light, monkeypatch, capsys, at, number
):
    """Three chunks of four launches: at the end of the first, inside the last."""
    seen, note = [], Sweep.note

    def counted(self, launch):
        seen.append(launch.done)
        if len(seen) == at:
            signal.raise_signal(number)
        note(self, launch)

    monkeypatch.setattr(Sweep, "note", counted)
    out = tmp_path / "sweep"
    stopped = sweep.run(begin(out))
    assert stopped["best_run"] is None
    assert not stopped["finished"]
    told = capsys.readouterr().err
    assert f"{3 * ((at - 1) // 4)} of 8 members are done" in told
    assert f"gm-jax sweep strategic --resume {out}" in told
    assert not (out / "best").exists()
    assert gm_jax("sweep", "strategic", "--resume", out, "--json") == 0
    assert len(seen) == 12  # nothing is trained twice
    assert (out / "sweep.json").read_bytes() == (whole / "sweep.json").read_bytes()
    for mine, theirs in zip(
        *(RunDirectory(one / "best").history() for one in (out, whole)), strict=True
    ):
        clocks = {"episodes_per_minute", "env_steps_per_second", "memory_bytes"}
        assert {k: v for k, v in mine.items() if k not in clocks} == {
            k: v for k, v in theirs.items() if k not in clocks
        }
    assert not (out / "members").exists()


@pytest.mark.parametrize("moment", ["keep", "_write_best"])
def test_killed_between_training_and_record(whole, tmp_path, light, monkeypatch, moment):
    """While members are evaluated, or while the best one is written."""
    where = sweep_members if moment == "keep" else sweep
    original, calls = getattr(where, moment), []

    def killed(*arguments):
        calls.append(arguments)
        original(*arguments)
        if len(calls) == (2 if moment == "keep" else 1):
            raise KeyboardInterrupt("SIGTERM")

    out = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        patch.setattr(where, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(begin(out))
    sweep.run(sweep.resume(out, STRATEGIC))
    assert (out / "sweep.json").read_bytes() == (whole / "sweep.json").read_bytes()


def test_bars_must_be_what_they_were(tmp_path):
    begin(tmp_path / "sweep").directory.release()
    record = content(tmp_path / "sweep")
    record["asked"]["source"]["seed"] = 5
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"are not what .* was begun with"):
        sweep.resume(tmp_path / "sweep", STRATEGIC)


def test_ranking_does_not_look_at_the_test_split(whole, tmp_path, light, monkeypatch):
    """Other bars in the test split: the same scores and ranks, other figures of the test."""
    load_all = sweep_plan.load_all

    def changed(*arguments):
        loaded = load_all(*arguments)
        bars = loaded.bars
        moves = np.where(np.arange(len(bars)) >= first, np.arange(len(bars)) % 77, 0)
        prices = {n: getattr(bars, n) + moves for n in ("open", "high", "low", "close")}
        return dataclasses.replace(loaded, bars=dataclasses.replace(bars, **prices), world=None)

    first = groups(plan())[0].setups[0].split.test[0]
    monkeypatch.setattr(sweep_plan, "load_all", changed)
    out = tmp_path / "sweep"
    sweep.run(begin(out))
    mine, theirs = content(out), content(whole)
    assert mine["ranking"] == theirs["ranking"]
    assert mine["best_member"] == theirs["best_member"]
    for one, other in zip(mine["members"], theirs["members"], strict=True):
        assert one["selection_score"] == other["selection_score"]
        assert one["validation"]["sharpe_ratio"] == other["validation"]["sharpe_ratio"]
        assert one["test"]["net_pnl"] != other["test"]["net_pnl"]


@pytest.mark.slow
def test_one_compilation_for_each_combination_of_static_values(tmp_path, light, monkeypatch):
    """Static and traced keys mixed: two programs for sixteen members, three at a time."""
    seen = []

    def counted(setup, axes, size):
        seen.append((setup.config.hidden_sizes, size))
        return compile_once(setup, axes, size)

    monkeypatch.setattr(run_members, "_compile", counted)
    grid = {"lr_actor": ["1e-2", "3e-3"], "hidden_sizes": ["[16]", "[8,4]"], **COSTS}
    out = tmp_path / "sweep"
    sweep.run(begin(out, grid=grid, num_episodes=2))
    assert seen == [((16,), 3), ((8, 4), 3)]
    found = content(out)
    assert [one["settings"] for one in found["programs"]] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    sizes = [member["settings"]["hidden_sizes"] for member in found["members"]]
    assert sizes == ([[16]] * 4 + [[8, 4]] * 4) * 2
    assert len({m["selection_score"] for m in found["members"]}) > 8


def test_member_that_breaks_down_stops_no_other(tmp_path, light, capsys):
    out = tmp_path / "sweep"
    sweep.run(begin(out, grid={"lr_actor": ["1e-2", "1e38"], **COSTS}))
    found = content(out)
    assert [m["failed"] is None for m in found["members"]] == [True] * 4 + [False] * 4
    assert "is not finite from iteration" in found["members"][5]["failed"]
    assert [row["failed"] for row in found["settings"]] == [0, 0, 2, 2]
    assert found["members"][4]["test"] is None
    assert {m["n_trials"] for m in found["members"]} == {9}  # they count
    assert "member 4 broke down" in capsys.readouterr().err


def test_nothing_is_chosen_where_all_break_down(tmp_path, light, capsys):
    grids = ["--grid", "lr_actor=1e38,2e38", "--grid", "commission_usd=.25,5", "--seeds", 2]
    assert gm_jax("sweep", "strategic", *grids, *SETS, "--out", tmp_path / "sweep") == 1
    assert "Every seed of every setting broke down" in capsys.readouterr().err
