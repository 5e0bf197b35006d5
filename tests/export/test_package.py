"""A package is put in force whole: killed at any moment, the old one or the new one is there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from gm_jax import cli
from gm_jax.errors import UserError
from gm_jax.export import package
from gm_jax.run import training


pytestmark = pytest.mark.usefixtures("quick_compiler")


torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gm_jax.deploy.package import read  # noqa: E402 - needs PyTorch


OLD = {"a.pth": b"old a", "b.pth": b"old b", "gone.onnx": b"old", "plots/x.png": b"old x"}
NEW = {"a.pth": b"new a", "b.pth": b"new b", "more.onnx": b"new", "plots/x.png": b"new x"}


class KilledError(BaseException):
    pass


def in_force(folder):
    """Return the files that a reader of the package gets."""
    sums = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: read(folder, name, sums) for name in sums}


def stop_after(monkeypatch, steps):
    """Let so many writes and renames happen, then kill; return what was left to do."""
    left = [steps]
    write, replace = package._write, os.replace

    def counted(act):
        def run(*arguments):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return act(*arguments)

        return run

    monkeypatch.setattr(package, "_write", counted(write))
    monkeypatch.setattr(package.os, "replace", counted(replace))
    return left


@pytest.mark.parametrize("steps", range(2 * len(NEW) + 3))
def test_killed_between_two_steps_old_or_new_is_in_force(tmp_path, monkeypatch, steps):
    package.publish(tmp_path, OLD, {"system": "tactical"})
    assert in_force(tmp_path) == OLD
    with monkeypatch.context() as patch:
        left = stop_after(patch, steps)
        try:
            package.publish(tmp_path, NEW, {"system": "tactical"})
        except KilledError:
            assert left == [0]
    committed = len(NEW) + 2  # every file, the manifest, and its rename
    assert in_force(tmp_path) == (NEW if steps >= committed else OLD)
    package.publish(tmp_path, NEW, {"system": "tactical"})  # goes on from whatever was left
    assert in_force(tmp_path) == NEW
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {
        *("manifest.json", "a.pth", "b.pth", "more.onnx", "x.png")
    }


def test_kill_9_leaves_old_or_new(tmp_path):
    """Real kills at moments that nobody chose, of an export that goes on and on."""
    code = """
        import sys
        from pathlib import Path
        from gm_jax.export.package import publish
        folder, turn = Path(sys.argv[1]), 0
        print("ready", flush=True)
        while True:
            turn += 1
            publish(folder, {f"{k}.pth": f"{turn} of {k}".encode() for k in range(8)}, {})
    """
    for pause in (0.0, 0.003, 0.011, 0.05):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), tmp_path], stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"ready\n"
        try:
            child.wait(pause + 0.05)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.communicate()
        turns = {content.split(b" of ")[0] for content in in_force(tmp_path).values()}
        assert len(turns) == 1


def test_manifest_has_the_sum_of_every_file(tmp_path):
    package.publish(tmp_path, OLD, {"layout": "gm"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["layout"] == "gm"
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert set(manifest["files"]) == set(OLD)


# the command


def test_export_needs_a_run(capsys, tmp_path):
    assert cli.main(["export", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_without_torch_one_line_says_how(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "available", lambda: False)
    with pytest.raises(UserError, match=r"PyTorch is not installed.*pip install torch"):
        package.export_run(tmp_path, onnx=False, safetensors=False)

    run = SimpleNamespace(directory=SimpleNamespace(path="exports/mine"))
    training._export(run)
    assert "pip install torch && gm-jax export exports/mine" in capsys.readouterr().err


def make_run(folder):
    """Write what a run directory is known by, and what it says of itself."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "plots").mkdir()
    for name in ("model_config.json", *package.TOLD, "plots/equity.png"):
        (folder / name).write_text(f"{name} of {folder.name}")
    (folder / "validation_results.json").write_text('{"iterations": 5}')
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory whose networks are at hand; the working directory is the one above."""
    setup = SimpleNamespace(system=SimpleNamespace(name="tactical"))
    state = SimpleNamespace(best=SimpleNamespace(iteration=3), iteration=5)
    stored = SimpleNamespace(restore=lambda setup: state, close=lambda: None)
    monkeypatch.setattr(package.record, "reopen", lambda directory: (setup, None))
    monkeypatch.setattr(package, "Checkpoints", lambda path: stored)
    monkeypatch.setattr(package, "_networks", lambda *_: {"a.pth": b"new a"})
    monkeypatch.setattr(package, "feature_state", lambda setup: {})
    monkeypatch.setattr(
        package.readme, "text", lambda *_: "worth this" if _[-1] else "of unknown worth"
    )
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "run")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_run_directory_spelled_otherwise_keeps_its_results(run, tmp_path):
    before = contents(run)
    (tmp_path / "link").symlink_to(run)
    for spelling in (run, "link", "link/../run"):
        assert cli.main(["export", "run", "--out", str(spelling)]) == 0
        listed = json.loads((run / "manifest.json").read_text())["files"]
        assert not {*package.TOLD, "plots/equity.png"} & set(listed)
        assert cli.main(["export", "run"]) == 0
        assert before.items() <= contents(run).items()
    names = ("model_config.json", *package.TOLD)
    package.publish(run, {name: (run / name).read_bytes() for name in names}, {})
    assert cli.main(["export", "run"]) == 0  # a manifest of before that has taken them for its own
    assert before.items() <= contents(run).items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "of a project"),
        ("src/a.py", "of a project"),
        ("manifest.json", '{"name": "an app"}'),
        ("manifest.json", "[]"),
    ],
)
def test_files_of_no_package_are_not_replaced(run, capsys, tmp_path, monkeypatch, name, content):
    (tmp_path / "project" / name).parent.mkdir(parents=True)
    (tmp_path / "project" / name).write_text(content)
    before = contents(tmp_path)
    monkeypatch.setattr(package.record, "reopen", None)  # refused before anything is computed
    assert cli.main(["export", "run", "--out", "project"]) == 2
    assert f"project holds {name}, but no manifest.json of" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_another_run_is_not_replaced(run, capsys, tmp_path, monkeypatch):
    other = make_run(tmp_path / "other")
    for exported in (False, True):
        if exported:
            package.publish(other, OLD, {})
        before = contents(other)
        with monkeypatch.context() as patch:
            patch.setattr(package.record, "reopen", None)
            assert cli.main(["export", "run", "--out", "other"]) == 2
        assert "other is the directory of another run" in capsys.readouterr().err
        assert contents(other) == before


def test_earlier_package_and_leftovers_give_way(run, tmp_path):
    package.publish(tmp_path / "earlier", OLD, {})
    left = tmp_path / "left"
    for name in ("a.pth.new", "plots/equity.png.new", "manifest.json.part", ".DS_Store", ".git/x"):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_bytes(b"left")
    (tmp_path / "empty").mkdir()
    for folder in ("earlier", "left", "empty", "none/yet"):
        for _ in range(2):
            assert cli.main(["export", "run", "--out", folder]) == 0
            found = in_force(tmp_path / folder)
            assert found["a.pth"] == b"new a" and "gone.onnx" not in found
            assert found["plots/equity.png"] == b"plots/equity.png of run"


def test_a_report_of_before_a_resume_is_not_passed_on(run, tmp_path):
    for iterations, passed_on in ((5, True), (3, False)):
        (run / "validation_results.json").write_text(json.dumps({"iterations": iterations}))
        assert cli.main(["export", "run", "--out", "model"]) == 0
        found = in_force(tmp_path / "model")
        assert {*package.TOLD} <= set(found) if passed_on else not {*package.TOLD} & set(found)
        assert (found["README.md"] == b"worth this") == passed_on
