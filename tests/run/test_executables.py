"""The training program that the command keeps: found by all that it is made of."""

import json
import os
import pickle
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from gm_jax import cache, doctor
from gm_jax.mappo import learner
from gm_jax.run import executables, launch
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import STRATEGIC, TACTICAL


ROOT = Path(__file__).parents[2]
TINY = {
    **{"hidden_sizes": (8,), "num_envs": 4, "episode_length": 50, "rollout_length": 50},
    **{"num_minibatches": 2, "num_epochs": 1, "market_bars": 4_000, "num_episodes": 2},
}

pytestmark = pytest.mark.skipif(
    not executables._processor() or jax.default_backend() != "cpu",
    reason="programs are kept for CPUs under Linux",
)


@pytest.fixture(scope="module")
def setup():
    settings = TACTICAL.settings.replace(**TINY)
    return prepare(TACTICAL, settings, load(Source(market="planted"), settings, 5))


@pytest.fixture
def jax_cache(quick_compiler, tmp_path):
    """Give JAX's cache a folder that is yet to be made."""
    path = tmp_path / "made" / "later"
    with cache.options(jax_compilation_cache_dir=str(path), jax_enable_compilation_cache=True):
        yield path


@pytest.fixture
def folder(jax_cache, monkeypatch):
    """Keep programs in it, as `gm-jax` does."""
    monkeypatch.setattr(cache, "keep_executables", True)
    return jax_cache


def kept(folder):
    return sorted(folder.glob("gm_jax-*"))


def add_one():
    return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((3,), np.float32))


def trained(setup):
    """Return what one iteration of the compiled program makes of a fresh state."""
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    program = launch.Program(launch.compile_program(setup), state)
    program.run(1)
    return jax.tree.leaves(jax.tree.map(np.asarray, launch.to_host(program.state())))


def test_a_kept_program_is_neither_traced_nor_compiled_and_does_the_same(
    setup, folder, monkeypatch
):
    first = trained(setup)
    assert len(kept(folder)) == 1
    jax.clear_caches()
    monkeypatch.setattr(launch, "lower", pytest.fail)
    for one, other in zip(first, trained(setup), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_program_is_not_taken_for_it(setup, monkeypatch):
    def key(setup):
        (device,) = setup.market.bars.devices()
        return executables._key(setup.config, launch.arguments_of(setup), device)

    first = key(setup)
    assert key(replace(setup)) == first
    for bars in (setup.market.bars[:-1], setup.market.bars.astype("float32")):
        assert key(replace(setup, market=setup.market.replace(bars=bars))) != first
    for changes in (
        {"precision": "bfloat16"},
        {"num_epochs": 2},
        {"interval": 3},
        {"system": STRATEGIC},
    ):
        assert key(replace(setup, config=replace(setup.config, **changes))) != first
    hyper = setup.hyper.replace(gamma=setup.hyper.gamma * 0.5)
    assert key(replace(setup, hyper=hyper)) == first  # values are traced
    for owner, name, other in (
        (executables, "SOURCES", "others"),
        (executables, "version", lambda _: "0.0.0"),
        (executables, "_processor", lambda: "model name: another"),
        (doctor, "cpu_count", lambda: 64),
        (sys, "version", "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            assert key(setup) != first, name
    for name, value in (("XLA_FLAGS", "--a=b"), ("NPROC", "1"), ("PJRT_NPROC", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert key(setup) != first, name
    with jax.default_matmul_precision("float32"):
        assert key(setup) != first


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda x: x[: len(x) // 2], lambda _: b"", lambda _: b"x\x9c"),
        lambda _: zlib.compress(pickle.dumps("another thing")),
        lambda _: zlib.compress(pickle.dumps((b"no program", None, None))),
    ],
)
def test_a_damaged_program_is_said_and_compiled_anew(damage, setup, folder, capsys):
    compiled = []

    def lower():
        compiled.append(1)
        return add_one()

    def found():
        return executables.compiled(setup.config, setup.market, lower)

    found()
    (path,) = kept(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert found()(np.ones(3, np.float32)).tolist() == [2, 2, 2]
    assert "cannot be loaded, the program is compiled anew" in capsys.readouterr().err
    assert found()(np.ones(3, np.float32)).tolist() == [2, 2, 2]
    assert len(compiled) == 2
    assert kept(folder) == [path]


def no_folder(folder, monkeypatch):
    folder.parent.write_text("a file where a folder is to be")


def no_serialiser(folder, monkeypatch):
    def refuse(program):
        raise ValueError("Compilation does not support serialization")

    monkeypatch.setattr(executables.serialize_executable, "serialize", refuse)


@pytest.mark.parametrize("obstacle", [no_folder, no_serialiser])
def test_what_cannot_be_kept_is_said_once_and_runs(obstacle, setup, folder, capsys, monkeypatch):
    obstacle(folder, monkeypatch)
    found = executables.compiled(setup.config, setup.market, add_one)
    assert found(np.ones(3, np.float32)).tolist() == [2, 2, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot be kept in {folder}" in line
    assert not kept(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"jax_enable_compilation_cache": False},
        {"jax_compilation_cache_dir": "gs://bucket/folder"},
        {"jax_compilation_cache_dir": None},
    ],
)
def test_nothing_is_kept_where_jax_keeps_nothing_or_elsewhere(setup, folder, options):
    (device,) = setup.market.bars.devices()
    assert executables._folder(device) == folder
    with cache.options(**options):
        assert executables._folder(device) is None


def test_flags_in_a_file_are_not_known_by_its_name(setup, folder, monkeypatch):
    (device,) = setup.market.bars.devices()
    for flags, found in (("flags.txt", None), ("", folder), (" ", folder), (" --a=b", folder)):
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert executables._folder(device) == found, flags


def test_of_several_devices_nothing_is_kept(setup, folder):
    config = replace(setup.config, mesh=jax.sharding.Mesh(jax.devices(), ("devices",)))
    executables.compiled(config, setup.market, add_one)
    assert not kept(folder)


def test_in_python_nothing_is_kept(setup, jax_cache):
    """Where other code runs, a changed reward would not be seen."""
    executables.compiled(setup.config, setup.market, add_one)
    assert not kept(jax_cache)


def test_the_command_loads_what_it_kept(tmp_path):
    """From the folder where JAX keeps its own too."""
    found = []
    sets = [f"--set={key}={list(v) if isinstance(v, tuple) else v}" for key, v in TINY.items()]
    arguments = ["train", "tactical", *sets, "--market=planted"]
    variables = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }
    for name, before in (("first", ""), ("second", "launch.lower = exit; ")):
        code = f"from gm_jax import cli; from gm_jax.run import launch; {before}cli.console()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, f"--out={tmp_path / name}"],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert not done.returncode, done.stderr
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(row)["reward"] for row in rows])
    assert found[0] == found[1]
    assert len(kept(tmp_path / "compiled")) == 1
