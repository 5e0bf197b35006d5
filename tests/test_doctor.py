"""The doctor on machines with and without a GPU, most of them simulated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gm_jax import cli, doctor


CPU = [{"kind": "cpu", "platform": "cpu", "memory_bytes": None}]
GPU = [{"kind": "NVIDIA H200", "platform": "gpu", "memory_bytes": 105 * 2**30}]
H200 = doctor.Nvidia(("NVIDIA H200",), "570.124.06")
KEYS = """versions system cpu_count memory_bytes devices jax_platform nvidia_gpus nvidia_driver
    runs_folder notes problems ok"""


def look(nvidia, devices, environment=None, **versions):
    """Examine a simulated machine with the packages of this one but for some."""
    named = dict.fromkeys(doctor.PLUGINS)
    named |= {name.replace("_", "-"): version for name, version in versions.items()}

    def find_version(name):
        return named[name] if name in named else doctor.installed_version(name)

    return doctor.examine(lambda: nvidia, lambda: devices, find_version, environment or {})


def plugin():
    return {"jax_cuda12_plugin": doctor.installed_version("jaxlib")}


def test_a_cpu_machine_is_fine():
    report = look(doctor.Nvidia(), CPU)
    assert (report["ok"], report["problems"], report["jax_platform"]) == (True, [], "cpu")
    assert report["notes"] == ["no GPU: training runs on the CPU."]


def test_a_gpu_that_jax_sees_is_fine():
    report = look(H200, GPU, **plugin())
    assert (report["ok"], report["problems"], report["jax_platform"]) == (True, [], "gpu")
    assert report["notes"] == ["training runs on NVIDIA H200."]
    shown = "\n".join(doctor.lines(report))
    assert "NVIDIA H200 (gpu, 105.0 GiB)" in shown
    assert "NVIDIA H200, driver 570.124.06" in shown


@pytest.mark.parametrize(
    ("environment", "plugins", "driver", "said"),
    [
        ({}, {}, "570.1", "pip install -e '.[cuda12]'"),
        ({"JAX_PLATFORMS": "cpu"}, plugin(), "570.1", "JAX_PLATFORMS=cpu hides it, unset it"),
        ({"CUDA_VISIBLE_DEVICES": ""}, plugin(), "570.1", "CUDA_VISIBLE_DEVICES='' hides it"),
        ({}, plugin(), "470.82.01", "driver 470.82.01 is too old for CUDA 12, install 525"),
        ({}, {"jax_cuda12_plugin": "0.1.0"}, "570.1", "0.1.0 is not of jaxlib"),
        ({"JAX_PLATFORMS": "cuda,cpu"}, plugin(), None, "does not start"),
    ],
)
def test_a_gpu_that_jax_does_not_see_fails_and_names_the_mend(environment, plugins, driver, said):
    report = look(doctor.Nvidia(("NVIDIA H200",), driver), CPU, environment, **plugins)
    (problem,) = report["problems"]
    assert not report["ok"]
    assert problem.startswith("JAX does not see the GPU (NVIDIA H200): ")
    assert said in problem
    assert problem.count(";") == (1 if "python -c" in problem else 0)  # one reason at a time
    assert f"PROBLEM: {problem}" in list(doctor.lines(report))


def test_several_reasons_are_named_together():
    report = look(doctor.Nvidia(("x",), "470.1"), CPU, {"JAX_PLATFORMS": "cpu"})
    said = report["problems"][0]
    assert all(word in said for word in ("JAX_PLATFORMS", "cuda12", "driver 470.1"))


def test_jax_that_does_not_start_is_a_finding_and_no_traceback():
    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    report = doctor.examine(doctor.Nvidia, broken, environment={"JAX_PLATFORMS": "cuda"})
    assert not report["ok"]
    assert report["devices"] == []
    expected = "JAX does not start: Unable to initialize backend 'cuda'. JAX_PLATFORMS=cuda asks"
    assert report["problems"][0].startswith(expected)
    json.dumps(report)


def test_packages_that_are_missing_or_old_are_problems():
    problems = look(doctor.Nvidia(), CPU, flax=None, numpy="1.26.4")["problems"]
    assert len(problems) == 2
    assert "flax is missing" in problems[0]
    assert "numpy 1.26.4: expected 2.0 or newer" in problems[1]
    assert look(doctor.Nvidia(), CPU, torch=None)["ok"]
    assert not any("torch" in problem for problem in problems)
    shown = "\n".join(doctor.lines(look(doctor.Nvidia(), CPU, torch=None)))
    assert "not installed (only needed by the exporter)" in shown


def test_folder_of_runs_is_looked_at(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert look(doctor.Nvidia(), CPU)["runs_folder"]["path"] == str(tmp_path)
    (tmp_path / "exports").mkdir()
    runs = look(doctor.Nvidia(), CPU)["runs_folder"]
    assert runs["path"] == str(tmp_path / "exports")
    assert runs["writable"]
    assert runs["free_bytes"] > 0
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    monkeypatch.setattr(doctor, "LEAST_FREE", 2**62)
    problems = look(doctor.Nvidia(), CPU)["problems"]
    assert ["cannot be written" in problems[0], "make room" in problems[1]] == [True, True]


# finding GPUs without JAX


def fake_smi(folder: Path, script: str) -> str:
    program = folder / "smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def driver_files(root: Path) -> None:
    gpu = root / "proc/driver/nvidia/gpus/0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 55\n")
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19\nGCC 12.2\n"
    (root / "proc/driver/nvidia/version").write_text(version)


def test_nvidia_smi_is_asked_first(tmp_path):
    driver_files(tmp_path)
    smi = fake_smi(tmp_path, "printf 'NVIDIA H200, 570.1\\nNVIDIA H200, 570.1\\n'")
    assert doctor.nvidia_gpus(tmp_path, smi) == doctor.Nvidia(("NVIDIA H200",) * 2, "570.1")


@pytest.mark.parametrize("script", [None, "echo no driver; exit 9", "exit 0"])
def test_driver_files_answer_where_nvidia_smi_does_not(tmp_path, script):
    driver_files(tmp_path)
    smi = fake_smi(tmp_path, script) if script else "no-such-program"
    assert doctor.nvidia_gpus(tmp_path, smi) == doctor.Nvidia(("NVIDIA L4",), "535.129.03")


def test_nvidia_smi_that_hangs_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    smi = fake_smi(tmp_path, "exec sleep 60")
    assert doctor.nvidia_gpus(tmp_path, smi) == doctor.Nvidia()


def test_device_nodes_alone_are_a_gpu(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert doctor.nvidia_gpus(tmp_path, "no-such-program") == doctor.Nvidia(("/dev/nvidia0",))


# the command


def test_command_prints_one_object_and_exits_by_ok(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_gpus", doctor.Nvidia)
    assert cli.main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert list(report) == KEYS.split()
    assert report["devices"][0]["platform"] == report["jax_platform"]
    assert report["cpu_count"] >= 1
    assert report["memory_bytes"] > 2**28
    assert report["versions"]["jax"]
    assert "JAX sees" in err

    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: H200)
    monkeypatch.setattr(doctor, "jax_devices", lambda: CPU)
    assert cli.main(["doctor"]) == 1
    assert "PROBLEM: JAX does not see the GPU" in capsys.readouterr().out


def test_help_does_not_import_jax():
    script = (
        "import sys\nfrom gm_jax import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'pandas', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "doctor" in done.stdout
