"""Trackers: what they are told equals metrics.jsonl, through stops, full disks and lost servers."""

import errno
import json
import os
import shutil
import struct
import sys
from types import ModuleType

import jax
import numpy as np
import pytest

from gm_jax import cli
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.run import tracking, training
from gm_jax.run.directory import RunDirectory
from gm_jax.run.metrics import metric_rows
from gm_jax.run.source import Source
from gm_jax.run.tracking import Trackers, Wanted
from gm_jax.systems import TACTICAL
from tests.run.test_training import tiny


pytest.importorskip("tensorboardX", reason="needs the extra `tensorboard`")
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData


class WandB(ModuleType):
    """Stands in for W&B: records the calls, and has a server that may be down."""

    Settings = type("Settings", (), {"model_fields": {"init_timeout": None}})

    def __init__(self, down=False):
        super().__init__("wandb")
        self.down, self.inits, self.logged, self.summary = down, [], [], {}
        self.torn_down = self.finished = 0

    def init(self, **options):
        self.inits.append(options)
        if self.down and options["mode"] != "offline":
            raise ConnectionError("no such host\nand more")
        return self

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self):
        self.finished += 1

    def teardown(self):
        self.torn_down += 1


@pytest.fixture(autouse=True)
def unknown_user(monkeypatch, tmp_path):
    """Nobody is logged in at W&B."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def events(folder):
    """Yield the events of a folder as TensorBoard reads them: file by file, a torn end left out."""
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            if len(data) < 16 + length:
                break
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def series(folder):
    """Return {tag: [(step, value), …]}; a start drops what is at its step or later."""
    found = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            found = {k: [x for x in v if x[0] < event.step] for k, v in found.items()}
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def plain(rows):
    """Return {tag: [(step, value), …]} of metrics.jsonl."""
    found = {}
    for row in rows:
        for name, value in row.items():
            for tag, x in (
                [(f"{name}/{k}", x) for k, x in value.items()]
                if isinstance(value, dict)
                else [(name, value)]
            ):
                if x is not None:
                    found.setdefault(tag, []).append((row["env_steps"], np.float32(x)))
    return found


def of_metrics(found):
    return {k: v for k, v in found.items() if k.split("/")[0] not in ("test", "validation")}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Killed after the fourth of six iterations with a checkpoint at the third, and taken up.

    Returns:
        (run directory, setup, stand-in for W&B).
    """
    wandb, out = WandB(), tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", wandb)
        patch.setattr(package, "available", lambda: False)
        wanted = Wanted(tensorboard=True, wandb="funds")
        settings = tiny(num_episodes=6)
        run = training.start(TACTICAL, settings, Source(market="planted"), out, wanted)
        arguments = (run.setup.market, run.setup.params, run.setup.hyper, run.setup.segments)
        for done in range(4):
            run.state, metrics = learner.train(
                run.state, np.int32(1), *arguments, config=run.setup.config
            )
            rows = metric_rows(run.setup, jax.device_get(metrics), done, 1, seconds=1.0)
            run.directory.append_metrics(rows)
            run.trackers.log(rows)
            if done == 2:
                run.checkpoints.save(run.setup, run.state)
        run.close()
        (file,) = (out / "tensorboard").iterdir()
        with file.open("ab") as stream:
            stream.write(struct.pack("<Q", 500) + b"torn")
        training.train(training.resume(out))
    return RunDirectory.open(out), run.setup, wandb


def test_tensorboard_has_every_step_once(resumed):
    directory, setup, _ = resumed
    found = series(directory.path / "tensorboard")
    assert of_metrics(found) == plain(directory.history())
    assert [step for step, _ in found["reward/risk"]] == [800 * i for i in range(1, 7)]
    assert "terms/equity" in found
    pages = {v.tag: v for e in events(directory.path / "tensorboard") for v in e.summary.value}
    start = HParamsPluginData.FromString(
        pages["_hparams_/session_start_info"].metadata.plugin_data.content
    ).session_start_info.hparams
    assert start["lr_actor"].number_value == setup.settings.lr_actor
    assert start["allow_short"].bool_value is False
    assert start["hidden_sizes"].string_value == "[16, 16]"
    assert b"|hidden_sizes|[16, 16]|" in pages["settings/text_summary"].tensor.string_val[0]


def test_trackers_get_the_report(resumed):
    directory, _, wandb = resumed
    test = json.loads((directory.path / "validation_results.json").read_text())["splits"]["test"]
    found = series(directory.path / "tensorboard")
    for name in ("max_drawdown", "net_pnl", "exposure"):
        assert found[f"test/{name}"] == [(4_800, np.float32(test[name]))]
        assert wandb.summary[f"test/{name}"] == test[name]
    assert test["sharpe_ratio"] is None  # of two sessions
    assert "test/sharpe_ratio" not in found


def test_wandb_goes_on_in_the_same_run(resumed):
    directory, setup, wandb = resumed
    first, second = wandb.inits
    record = json.loads((directory.path / "tracking.json").read_text())
    assert record == {"tensorboard": True, "wandb": {"project": "funds", "id": first["id"]}}
    for options in (first, second):
        assert (options["project"], options["id"]) == ("funds", first["id"])
        assert (options["resume"], options["mode"]) == ("allow", "offline")
        assert options["dir"] == str(directory.path)
        assert options["settings"] == {"init_timeout": 20}
        assert setup.settings.to_json().items() <= options["config"].items()
    assert [step for step, _ in wandb.logged] == [800, 1600, 2400, 3200, 3200, 4000, 4800]
    figures = wandb.logged[-1][1]
    assert figures["reward/risk"] == directory.history()[-1]["reward"]["risk"]
    assert wandb.finished == 2


def test_a_finished_run_can_be_tracked_later_and_again(resumed, tmp_path, monkeypatch):
    directory, setup, _ = resumed
    shutil.copytree(directory.path, tmp_path / "run")
    later = RunDirectory.open(tmp_path / "run")
    shutil.rmtree(later.path / "tensorboard")
    (later.path / "tracking.json").unlink()
    results = json.loads((later.path / "validation_results.json").read_text())
    monkeypatch.setitem(sys.modules, "wandb", wandb := WandB())
    for wanted in (Wanted(tensorboard=True, wandb=""), Wanted()):
        trackers = tracking.begin(later, setup, wanted)
        assert len(trackers.open) == 2
        trackers.report(4_800, results)
        trackers.close()
    assert series(later.path / "tensorboard") == series(directory.path / "tensorboard")
    assert len(list((later.path / "tensorboard").iterdir())) == 2
    assert [step for step, _ in wandb.logged] == [800 * i for i in range(1, 7)]
    assert {options["project"] for options in wandb.inits} == {"gm_jax"}
    tracking.begin(later, setup, Wanted(wandb="other")).close()
    assert wandb.inits[-1]["id"] != wandb.inits[0]["id"]


@pytest.fixture
def fresh(resumed, tmp_path):
    """A run directory with history, tracked by nothing."""
    directory = RunDirectory(tmp_path / "fresh")
    directory.path.mkdir()
    shutil.copy(resumed[0].metrics, directory.metrics)
    return directory, resumed[1]


@pytest.mark.parametrize("begun", [False, True])
def test_a_full_disk_ends_the_tracking_and_not_the_run(fresh, monkeypatch, capsys, begun):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    directory, setup = fresh
    if not begun:
        monkeypatch.setattr(record_writer, "open_file", full)
    trackers = tracking.begin(directory, setup, Wanted(True))
    assert len(trackers.open) == begun
    monkeypatch.setattr(os, "fsync", full)
    for row in directory.history():
        trackers.log([row])
    trackers.close()
    said = capsys.readouterr().err
    assert said.count("TensorBoard failed, the run goes on without it: [Errno 28] No space") == 1
    assert f"{directory.metrics} has every row" in said


def test_one_tracker_that_fails_leaves_the_other(fresh, monkeypatch, capsys):
    directory, setup = fresh
    monkeypatch.setitem(sys.modules, "wandb", wandb := WandB())
    trackers = tracking.begin(directory, setup, Wanted(True, "p"))
    monkeypatch.setattr(wandb, "log", lambda *_, **__: 1 / 0)
    rows = [row | {"env_steps": row["env_steps"] + 4_800} for row in directory.history()]
    for row in rows:
        trackers.log([row])
    trackers.close()
    assert capsys.readouterr().err.count("Weights & Biases failed") == 1
    assert len(series(directory.path / "tensorboard")["cost_usd"]) == 12


@pytest.mark.parametrize(
    ("environment", "key_file", "mode"),
    [
        ({}, "", "offline"),
        ({}, "machine example.org login x password y", "offline"),
        ({}, "machine api.wandb.ai login user password k", None),
        ({"WANDB_API_KEY": "k"}, "", None),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "", "disabled"),
        ({"WANDB_BASE_URL": "https://own.net:8/"}, "machine own.net:8 login u password k", None),
    ],
)
def test_wandb_is_offline_without_a_key(fresh, tmp_path, monkeypatch, environment, key_file, mode):
    (tmp_path / "netrc").write_text(key_file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "wandb", wandb := WandB())
    tracking.begin(*fresh, Wanted(wandb="p")).close()
    assert [options["mode"] for options in wandb.inits] == [mode]


def test_wandb_is_offline_without_its_server(fresh, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setitem(sys.modules, "wandb", wandb := WandB(down=True))
    tracking.begin(*fresh, Wanted(wandb="p")).close()
    assert [options["mode"] for options in wandb.inits] == [None, "offline"]
    assert wandb.torn_down == 1
    assert len(wandb.logged) == 6
    out, err = capfd.readouterr()
    assert (out, err) == ("", "warning: W&B does not start online, it logs offline: no such host\n")


@pytest.mark.parametrize(
    ("flag", "package_name", "found"),
    [
        ("--tensorboard", "tensorboardX", None),
        ("--wandb", "wandb", None),
        ("--wandb", "wandb", ModuleType("wandb")),  # the folder that W&B leaves behind
    ],
)
def test_a_missing_package_is_told_before_anything(
    tmp_path, monkeypatch, capsys, flag, package_name, found
):
    monkeypatch.setitem(sys.modules, package_name, found)
    assert cli.main(["train", "tactical", "--out", str(tmp_path / "run"), flag]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gm-jax: {flag} needs {package_name}, which is not installed: pip")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_where_its_tracker_is_not_installed(resumed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    shutil.copytree(resumed[0].path, tmp_path / "run")
    directory = RunDirectory.open(tmp_path / "run")
    assert tracking.begin(directory, resumed[1], Wanted()).open == []
    said = capsys.readouterr().err
    assert "the run goes on without --tensorboard: tensorboardX is not installed" in said
    assert "the run goes on without --wandb" in said
    assert json.loads((directory.path / "tracking.json").read_text())["tensorboard"]


def test_nothing_is_written_where_nothing_is_wanted(fresh):
    directory, setup = fresh
    assert tracking.begin(directory, setup, Wanted()) == Trackers(directory)
    assert [path.name for path in directory.path.iterdir()] == ["metrics.jsonl"]


def test_the_real_wandb_logs_offline(fresh):
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    directory, setup = fresh
    trackers = tracking.begin(directory, setup, Wanted(wandb="p"))
    (tracker,) = trackers.open
    told = directory.history()[-1]["reward"]["tactical"]
    assert tracker._run.summary["reward/tactical"] == told
    trackers.close()
    assert len([*directory.path.glob("wandb/offline-run-*/run-*.wandb")]) == 1
