"""The command line as a user meets it."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from gm_jax import cli
from gm_jax.run import results
from gm_jax.systems import TACTICAL
from tests.run.schema import BASELINES, REPORT


TINY = [
    *("--set", "hidden_sizes=[16,16]", "--set", "num_envs=8", "--set", "episode_length=100"),
    *("--set", "rollout_length=50", "--set", "num_episodes=2", "--set", "num_minibatches=2"),
    *("--set", "num_epochs=2", "--set", "validate_every=2", "--set", "market_bars=6000"),
]


def run(capsys, *arguments):
    """Return (status, what was printed on stdout, on stderr)."""
    try:
        status = cli.main([str(a) for a in arguments])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", "tactical", "--out", str(out), "--seed", "3", *TINY]) == 0
    return out


def test_train_prints_one_json_object(capsys, tmp_path):
    status, out, err = run(capsys, "train", "tactical", "--out", tmp_path / "r", "--json", *TINY)
    assert status == 0
    summary = json.loads(out)
    assert summary["env_steps"] == 2 * 100 * 8
    assert "planted" in err
    assert "easy" in err
    assert str(tmp_path / "r") in err


@pytest.mark.parametrize(
    "split",
    [
        "train",
        "validation",
        None,
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("test", "all")),
    ],
)
def test_evaluate_labels_what_is_in_sample(capsys, trained, split):
    flags = ["--split", split] if split else []
    status, out, _ = run(capsys, "evaluate", trained, "--json", *flags)
    result = json.loads(out)
    assert status == 0
    assert result["split"] == (split or "test")
    assert result["in_sample"] == (split in ("train", "all"))
    if result["in_sample"]:  # trials are counted there, but do not say what they came to
        assert (result["n_trials"], result["deflated_sharpe"]) == (1, None)
    costs = result["commission"] + result["spread_cost"] + result["impact_cost"]
    assert result["net_pnl"] == pytest.approx(result["gross_pnl"] - costs)
    assert result["final_portfolio_value"] == pytest.approx(100_000 + result["net_pnl"])


def test_evaluation_agrees_with_the_one_at_the_end_of_training(capsys, trained):
    _, out, _ = run(capsys, "evaluate", trained, "--json", "--split", "test")
    stored = json.loads((trained / "validation_results.json").read_text())["splits"]["test"]
    now = json.loads(out)
    assert {k: now[k] for k in stored if k != "last"} == {
        k: v for k, v in stored.items() if k != "last"
    }


def test_every_report_is_whole(capsys, trained):
    _, out, _ = run(capsys, "evaluate", trained, "--json", "--split", "validation")
    stored = json.loads((trained / "validation_results.json").read_text())["splits"]
    assert set(stored) == {"validation", "test"}
    for report in (json.loads(out), *stored.values()):
        assert set(report) >= REPORT
        assert set(report["baselines"]) >= BASELINES
        assert set(report["targets"]) == {"reward"}
        assert set(report["agent_contributions"]) == set(TACTICAL.agents)
        assert len(report["episode_rewards"]) == report["bars"] // report["episode_bars"]
        won = np.mean(np.array(report["episode_rewards"]) > 0)
        assert report["win_rate_episodes"] == won
        assert sum(found["bars"] for found in report["per_regime"].values()) == report["bars"]
        assert 0 < report["unlabelled_bars"] <= report["per_regime"]["NORMAL"]["bars"]


def test_ledger_has_a_row_per_bar(capsys, trained, tmp_path):
    status, out, _ = run(capsys, "evaluate", trained, "--json", "--ledger", tmp_path / "ledger.csv")
    assert status == 0
    with (tmp_path / "ledger.csv").open() as file:
        rows = list(csv.DictReader(file))
    agents = ("tactical", "risk", "execution")
    assert list(rows[0]) == ["time", *agents, "target_position", "position", "equity"]
    assert len(rows) == json.loads(out)["bars"]
    assert all(int(row[agent]) in range(5) for row in rows for agent in agents)
    times = pd.to_datetime([row["time"] for row in rows])
    assert times.is_monotonic_increasing
    assert str(times.tz) == "UTC"


def test_synthetic_file_round_trip_and_evaluation_of_another_file(capsys, trained, tmp_path):
    """A generated file passes the check, and another file is evaluated whole."""
    file = tmp_path / "bars.csv"
    made = ["--bars", 6000, "--minutes", 5, "--seed", 9, "--out", file, "--set", "kappa=0.2"]
    status, out, _ = run(capsys, "data", "synth", "--market", "planted", "--json", *made)
    assert (status, json.loads(out)["parameters"]["kappa"]) == (0, 0.2)
    status, out, _ = run(capsys, "data", "check", file, "--json")
    report = json.loads(out)
    assert status == 0
    assert (report["rows_read"], report["bars"], report["bar_minutes"]) == (6000, 6000, 5)
    assert report["warnings"] == []
    status, out, _ = run(capsys, "evaluate", trained, "--data", file, "--json")
    result = json.loads(out)
    assert (status, result["split"], result["in_sample"]) == (0, "all", False)
    assert 5_800 < result["bars"] < 6_000  # less the warm-up
    assert run(capsys, "evaluate", trained, "--data", file, "--split", "test")[0] == 2
    # the very bars it was trained on are called so
    made = ["--bars", 6000, "--minutes", 5, "--seed", 3, "--out", file]
    run(capsys, "data", "synth", "--market", "planted", *made)
    _, out, err = run(capsys, "evaluate", trained, "--data", file, "--json")
    assert json.loads(out)["in_sample"]
    assert json.loads(out)["selected_on"]
    assert "trained on" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "tactic"], "did you mean tactical"),
        (["train", "tactical", "--set", "lr_acter=1"], "Did you mean `lr_actor`"),
        (["train", "tactical", "--market", "plantd"], "planted"),
        (["train", "tactical", "--data", "nowhere.csv"], "No file nowhere.csv"),
        (["train", "tactical", "--set", "features=[retrun_60]"], "return_60"),
        (["train", "tactical", "--set", "market_bars=300"], "sessions"),
        (["train", "tactical", "--set", "market.kapa=1"], "kapa"),
        (["train", "tactical", "--resume", "nowhere"], "no run directory"),
        (["train", "tactical", "--config", "nowhere.yaml"], "cannot be read"),
        (["evaluate", "nowhere"], "no run directory"),
        (["evaluate", "nowhere", "--tz", "UTC"], "--tz describes a file"),
        (["train", "tactical", "--set", "tick_points=1"], "ticks of 0.25 points"),
        (["train", "tactical", "--set", "purge_bars=90000"], "purge_bars"),
        (["train", "tactical", "--set", "market.seed=3"], "no parameter 'seed'"),
        (["train", "tactical", "--seed", "x"], "expected a whole number"),
        (["bench", "tactical", "--seconds", "-1"], "above 0"),
        (["data", "check", "nowhere.csv"], "No file nowhere.csv"),
        (
            [
                "data",
                "synth",
                "--market",
                "planted",
                "--bars",
                "9",
                "--minutes",
                "7",
                "--out",
                "x.csv",
            ],
            "invalid choice",
        ),
    ],
)
def test_mistakes_get_one_clear_error(capsys, arguments, said):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if not line.startswith("no --data")]) <= 2


def test_resume_takes_no_other_settings(capsys, trained):
    for flags in (["--seed", "4"], ["--set", "lr_actor=1"], ["--market", "martingale"]):
        status, _, err = run(capsys, "train", "tactical", "--resume", trained, *flags)
        assert status == 2
        assert "cannot be changed" in err
    less = ["--set", "num_episodes=1"]
    assert "already done 2" in run(capsys, "train", "tactical", "--resume", trained, *less)[2]
    status, out, _ = run(
        capsys, "train", "tactical", "--resume", trained, "--set", "num_episodes=4", "--json"
    )
    assert (status, json.loads(out)["env_steps"]) == (0, 4 * 100 * 8)


def test_a_ledger_never_replaces_the_bars(capsys, trained, tmp_path):
    bars = tmp_path / "bars.csv"
    bars.write_text("Date,Open\n")
    status, out, err = run(capsys, "evaluate", trained, "--data", bars, "--ledger", bars)
    assert (status, out) == (2, "")
    assert "is the file of bars itself" in err
    assert bars.read_text() == "Date,Open\n"


def test_baselines_stand_beside_the_team_for_a_person(capsys, trained):
    _, out, _ = run(capsys, "evaluate", trained)
    words = ("team", "buy and hold", "random", "target reward")
    assert all(word in out for word in words)


def test_table_has_room_for_what_is_not_a_number():
    """A team with a Sharpe ratio beside a flat baseline without."""
    keys = [key for key, _, _ in results._COLUMNS]
    flat = dict.fromkeys(keys) | {"trades": 0, "net_pnl": 0.0}
    team = dict.fromkeys(keys, 1.5) | {"trades": 1_234_567, "net_pnl": -1_234_567.8}
    lines = results.table(team | {"baselines": {"buy_and_hold": flat}, "oracle_sharpe": None})
    assert len({len(line) for line in lines}) == 1  # columns stand under their headings
    assert [line[:13].strip() for line in lines] == ["", "team", "buy and hold"]
    assert lines[1].split()[1:5] == ["1.50", "1.50", "150.0%", "-1,234,568"]
    assert lines[2].split()[3:7] == ["n/a", "n/a", "n/a", "0"]
    known = {"baselines": {"buy_and_hold": flat}, "oracle_sharpe": 2.0, "oracle": team}
    assert results.table(team | known)[3].split()[:2] == ["oracle", "1.50"]


def test_a_run_without_checkpoints_is_left_as_it_is(capsys, trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints")
    status, _, err = run(capsys, "evaluate", copy)
    assert (status, "checkpoints of the run are gone" in err) == (2, True)
    assert not (copy / "checkpoints").exists()


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "gm_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in done.stdout for name in ("train", "evaluate", "bench", "data"))


# real bars


@pytest.mark.slow
def test_real_five_minute_file_trains_to_a_run_directory(capsys, shared_data, tmp_path):
    file = shared_data / "NQ - 5 min - ETH.csv"
    flags = ["--data", file, "--preset", "quick", "--set", "num_episodes=3", "--json"]
    status, out, err = run(capsys, "train", "tactical", "--out", tmp_path / "real", *flags)
    assert status == 0
    assert json.loads(out)["run_dir"] == str(tmp_path / "real")
    assert "windows have" in err  # shorter than episode_length, and said so
    assert (tmp_path / "real" / "validation_results.json").exists()


def test_thirty_minute_file_is_refused_for_its_bars(capsys, shared_data):
    file = shared_data / "NQ - 30 min - ETH.csv"
    status, _, err = run(capsys, "train", "tactical", "--data", file)
    assert status == 2
    assert "Found 30-minute bars; expected 5-minute bars: give a file of 5-minute bars" in err
