"""The trials file: whole lines from many writers, the newest of each setting, clear errors."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from gm_jax.errors import UserError
from gm_jax.report.metrics import summarise
from gm_jax.run import sweep_report, trials
from gm_jax.run.directory import WriteError
from gm_jax.run.evaluation import luck
from gm_jax.run.results import REPORTED
from gm_jax.run.trials import Trial, beside, known, record, settings_digest, sharpes, trial
from gm_jax.systems import SYSTEMS
from tests.report.ledgers import of_returns


SETTINGS = SYSTEMS["tactical"].settings


def made(setting="a", data="d", system="tactical", **changes) -> Trial:
    """Return a trial; its names stand for digests."""
    sharpe = {"validation": 0.1, "test": None}
    plain = Trial("2024-05-01T10:00:00Z", "20240501-tactical", system, data, setting, sharpe)
    return replace(plain, **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trials.jsonl"


# what is read


def test_what_is_recorded_is_known(path):
    assert known(path, "d", "tactical") == []
    written = [made("a"), made("b", sharpe={"test": -0.25}), made("c", sharpe={})]
    for one in written:
        record(path, one)
    assert known(path, "d", "tactical") == written
    assert sharpes(written, "test") == [None, -0.25, None]
    assert sharpes(written, "validation") == [0.1, None, None]


def test_a_line_is_plain_json(path):
    record(path, made(sharpe={"test": float("nan"), "validation": 0.5}))
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "time": "2024-05-01T10:00:00Z",
        "run": "20240501-tactical",
        "system": "tactical",
        "data_sha256": "d",
        "settings_sha256": "a",
        "sharpe": {"test": None, "validation": 0.5},
    }


def test_newest_of_each_setting_on_the_same_data_and_system(path):
    again = made("a", run="later", sharpe={"test": 0.9})
    for one in (
        made("a"),
        made("b"),
        made("z", data="other"),
        made("z", system="strategic"),
        again,
    ):
        record(path, one)
    # what the newest says, and what an earlier one says of other splits
    merged = made("a", run="later", sharpe={**made("a").sharpe, "test": 0.9})
    assert known(path, "d", "tactical") == [made("b"), merged]
    assert known(path, "other", "tactical") == [made("z", data="other")]
    assert known(path, "other", "strategic") == []


def test_further_keys_are_left_alone(path):
    path.write_text(json.dumps(asdict(made()) | {"note": "by hand"}) + "\n")
    assert known(path, "d", "tactical") == [made()]


# what a run is


def test_trial_of_a_run(tmp_path):
    run = tmp_path / "exports" / "20240501-101112-tactical"
    before = datetime.now(UTC).replace(microsecond=0)
    one = trial(run, "tactical", "d", SETTINGS.to_json(), {"test": 0.1})
    assert before <= datetime.fromisoformat(one.time) <= datetime.now(UTC)
    assert (one.run, one.system, one.data_sha256) == (run.name, "tactical", "d")
    assert one.settings_sha256 == settings_digest(SETTINGS.to_json())
    assert beside(run) == tmp_path / "exports" / "trials.jsonl"


def test_run_may_be_named_from_within(tmp_path, monkeypatch):
    run = tmp_path / "20240501-101112-tactical"
    run.mkdir()
    monkeypatch.chdir(run)
    assert beside(Path(".")) == tmp_path / "trials.jsonl"
    assert trial(Path("."), "tactical", "d", {}, {}).run == run.name
    (run / "plots").mkdir()
    monkeypatch.chdir(run / "plots")
    assert beside(Path("..")) == tmp_path / "trials.jsonl"


def test_every_setting_makes_another_trial():
    plain = SETTINGS.to_json()
    digests = {settings_digest(plain | {key: "changed"}) for key in plain}
    assert len(digests) == len(plain)
    assert settings_digest(plain) not in digests
    assert settings_digest(plain | {"seed": 1}) != settings_digest(plain)


def test_digest_is_of_what_the_settings_say():
    plain = SETTINGS.to_json()
    assert settings_digest(dict(reversed(plain.items()))) == settings_digest(plain)
    # as they come back from model_config.json
    assert settings_digest(json.loads(json.dumps(plain))) == settings_digest(plain)
    # printf '{"a":1.5,"b":[1,2]}' | sha256sum
    assert settings_digest({"b": [1, 2], "a": 1.5}) == (
        "545c159c1248310714b8d6ad270e0be90c383b063604aeb3a677ec4c6755cc4d"
    )


# what trials say of a report


@pytest.mark.parametrize("sessions", [19, 20])
def test_too_few_sessions_for_a_ratio_have_no_deflated_one(sessions):
    """As `sharpe_ratio` and `probabilistic_sharpe`, in runs and in sweeps."""
    returns = np.resize([0.01, -0.005, 0.002], sessions)
    team, tried = of_returns(returns), [made("a"), made("b", sharpe={"validation": 0.2})]
    figures = summarise(team, 1, interval=True)
    member = {"data_sha256": "d", "failed": None, "selection_score": 1.0, "best_iteration": 1}
    member["splits"] = {name: {**figures, "returns": returns.tolist()} for name in REPORTED}
    row = {"member": 0, "setting": 0, "seed": 0, "settings": {}}
    (swept,) = sweep_report.report([row], [member], {"d": tried})["members"]
    for found in (
        luck(team, tried, "validation"),
        luck(team, [], "validation"),
        swept["validation"],
    ):
        assert (found["deflated_sharpe"] is None) == (sessions < 20)
    assert (figures["probabilistic_sharpe"] is None) == (sessions < 20)


def test_what_trials_do_not_say_deflates_nothing():
    """Nothing is kept of training bars: one trial there would be as if it were the only one."""
    team = of_returns(np.resize([0.01, -0.005, 0.002], 40))
    for tried in ([made("a")], [made("a"), made("b")]):
        found = luck(team, tried, None)
        assert (found["n_trials"], found["deflated_sharpe"]) == (len(tried), None)


# power cuts and crowds


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_half_written_last_line_is_ignored_and_cut_off(path, kept):
    record(path, made("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    assert known(path, "d", "tactical") == [made("a")]
    record(path, made("b"))
    assert known(path, "d", "tactical") == [made("a"), made("b")]
    assert path.read_bytes() == whole + whole.replace(b'"a"', b'"b"')


def test_whole_last_line_that_lacks_its_end_is_kept(path):
    record(path, made("a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert known(path, "d", "tactical") == [made("a")]
    record(path, made("b"))
    assert known(path, "d", "tactical") == [made("a"), made("b")]


def test_blocks_of_zeros_that_a_power_cut_leaves(path):
    record(path, made("a"))
    with path.open("ab") as file:
        file.write(bytes(512))
    record(path, made("b"))
    assert known(path, "d", "tactical") == [made("a"), made("b")]


WRITER = """
import sys
from pathlib import Path
from gm_jax.run.trials import Trial, record

path, writer = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    record(path, Trial("", "x" * 9_000, "tactical", "d", f"{writer}-{number}", {}))
"""


def test_processes_side_by_side_lose_nothing(path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "abc"
    ]
    for process in writers:
        assert process.stdout.readline() == b"ready\n"
    for process in writers:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    found = known(path, "d", "tactical")
    assert {one.settings_sha256 for one in found} == {f"{w}-{i}" for w in "abc" for i in range(100)}
    assert path.read_bytes().count(b"\n") == 300


def test_a_writer_waits_for_the_lock(path):
    record(path, made("a"))
    writer = threading.Thread(target=record, args=(path, made("b")))
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer.start()
        writer.join(timeout=0.5)
        assert writer.is_alive()
        assert known(path, "d", "tactical") == [made("a")]  # reading waits for nobody
    writer.join()
    assert known(path, "d", "tactical") == [made("a"), made("b")]


def test_file_system_without_locks(path, monkeypatch):
    def none(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    record(path, made())
    assert known(path, "d", "tactical") == [made()]


# errors


@pytest.mark.parametrize(
    "line",
    [
        "half a li",
        "",
        "[]",
        "3",
        "\udcff",
        json.dumps({k: v for k, v in asdict(made()).items() if k != "data_sha256"}),
        json.dumps(asdict(made()) | {"sharpe": 0.5}),
        json.dumps(asdict(made()) | {"sharpe": {"test": "0.5"}}),
        json.dumps(asdict(made()) | {"sharpe": {"test": float("nan")}}),
        json.dumps(asdict(made()) | {"time": None}),
        json.dumps(asdict(made()) | {"settings_sha256": 3}),
    ],
)
def test_whole_line_that_is_no_trial_is_named(path, line):
    record(path, made())
    with path.open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    record(path, made("b"))
    with pytest.raises(UserError) as caught:
        known(path, "d", "tactical")
    message = str(caught.value)
    assert f"{path}, line 2 is no trial" in message
    assert "settings_sha256" in message
    assert "remove the line" in message


def test_what_cannot_be_written_is_named(tmp_path):
    gone = tmp_path / "gone" / "trials.jsonl"
    with pytest.raises(WriteError, match=r"Cannot write .*gone/trials\.jsonl: No such file"):
        record(gone, made())
    with pytest.raises(WriteError, match="Is a directory"):
        record(tmp_path, made())
    with pytest.raises(UserError, match=r"Cannot read .*: Is a directory"):
        known(tmp_path, "d", "tactical")


def test_full_disk_leaves_what_was_there(path, monkeypatch):
    record(path, made("a"))

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(trials.os, "fsync", full)
        with pytest.raises(WriteError, match="No space left on device"):
            record(path, made("b"))
    record(path, made("c"))
    names = [one.settings_sha256 for one in known(path, "d", "tactical")]
    assert (names[0], names[-1]) == ("a", "c")
