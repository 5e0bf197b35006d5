"""One program on several devices, in several processes, and within the memory there is."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gm_jax import cli, doctor
from gm_jax.errors import LostProcessError, UserError
from gm_jax.mappo import learner
from gm_jax.run import cluster, launch, memory, training
from gm_jax.run.directory import RunDirectory
from gm_jax.run.metrics import metric_rows
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import TACTICAL


ROOT = Path(__file__).parents[2]
TINY = {
    **{"hidden_sizes": (16, 16), "num_envs": 16, "episode_length": 100, "rollout_length": 50},
    **{"num_minibatches": 4, "num_epochs": 1, "market_bars": 6_000, "validate_every": 2},
}


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def setup_of(**changes):
    settings = TACTICAL.settings.replace(**(TINY | changes))
    return prepare(TACTICAL, settings, load(Source(market="planted"), settings, 5))


# devices


def test_eight_devices_learn_what_one_learns():
    """From the same state and the same global batches; only gradients are added up."""
    program = [sys.executable, "-m", "tests.run.eight_devices"]
    done = subprocess.run(
        program, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["largest"] < 1e-5
    expected = {"devices": 8, "split_over": [8], "moved": [], "added_up": True}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("envs", "rollout", "minibatches", "groups"),
    [(64, 125, 4, 16), (64, 50, 2, 64), (6, 50, 4, 3), (1, 4, 2, 1), (4, 1, 4, 1)],
)
def test_groups_can_be_parted_into_minibatches(envs, rollout, minibatches, groups):
    config = setup_of(
        num_envs=envs,
        rollout_length=rollout,
        episode_length=rollout,
        num_minibatches=minibatches,
    ).config
    assert config.groups == groups
    assert envs % groups == 0
    assert (envs // groups) * rollout % minibatches == 0


def test_every_step_is_learnt_from_once_an_epoch():
    setup = setup_of(num_epochs=1)
    config, size = setup.config, 16 * 50
    rows = np.arange(size).reshape(config.groups, -1)
    parts = learner.shuffled(jax.random.key(0), rows.shape[1], config)
    taken = [np.asarray(learner._take(rows, part)) for part in parts]
    assert [len(part) for part in taken] == [size // 4] * 4
    assert sorted(np.concatenate(taken)) == list(range(size))


# memory


def test_fewer_environments_where_the_memory_is_short(monkeypatch, capsys):
    def compiled(setup):  # 16 environments need 18 MiB
        return SimpleNamespace(setup=setup, bytes_needed=(2 + setup.config.num_envs) * 2**20)

    room = {"free": 2**30}
    monkeypatch.setattr(launch, "compile_program", compiled)
    monkeypatch.setattr(memory, "device", lambda: room)
    for free, envs in ((18 / launch.MEMORY_SHARE + 1, 16), (18, 8), (8, 4)):
        room["free"] = int(free * 2**20)
        found = launch.fitting_program(setup_of())
        assert found.setup.settings.num_envs == found.setup.config.num_envs == envs
        said = capsys.readouterr().err
        assert f"memory: {envs} environments take {envs + 2} MiB of" in said
        assert ("fewer than the 16 asked for" in said) == (envs < 16)
    room["free"] = 2**20
    with pytest.raises(UserError, match=r"fewer cannot be trained.*Set smaller hidden_sizes"):
        launch.fitting_program(setup_of(num_minibatches=400, rollout_length=25))


EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_what_cannot_be_compiled_for_want_of_memory_does_not_fit(monkeypatch, capsys):
    def compiled(setup):
        if setup.config.num_envs > 4:
            raise EXHAUSTED
        return SimpleNamespace(setup=setup, bytes_needed=1)

    monkeypatch.setattr(launch, "compile_program", compiled)
    assert launch.fitting_program(setup_of()).setup.config.num_envs == 4
    assert "fewer than the 16 asked for" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"16 environments cannot be compiled in .*smaller num_envs"
    ):
        launch.fitting_program(setup_of(), begun=True)
    with pytest.raises(UserError, match="fewer cannot be trained with num_minibatches 400"):
        launch.fitting_program(setup_of(num_minibatches=400, rollout_length=25))


def test_of_several_processes_one_out_of_memory_says_so(monkeypatch):
    monkeypatch.setattr(cluster, "several", lambda: True)
    with pytest.raises(LostProcessError, match="too little memory for its"), cluster.unbroken():
        raise EXHAUSTED


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_container_has_used_is_not_free(version, tmp_path, monkeypatch):
    """Of 100 MiB 70 are used, 20 of these by caches of files."""
    folder, prefix = (tmp_path / "memory", "total_") if version == 1 else (tmp_path, "")
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    folder.mkdir(exist_ok=True)
    limit, used, held = (folder / f"memory.{name}" for name in (*names, "stat"))
    used.write_text(f"{70 * 2**20}\n")
    held.write_text(
        f"anon 1\n{prefix}inactive_file {15 * 2**20}\n{prefix}active_file {5 * 2**20}\n"
    )
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 2**40)
    limit.write_text(f"{100 * 2**20}\n")
    assert memory.left_in_container() == [50 * 2**20]
    assert memory.host()["free"] == 50 * 2**20
    limit.write_text("1\n")
    assert memory.host()["free"] == 0
    limit.write_text("max\n")
    assert memory.left_in_container() == []
    assert memory.host()["free"] == memory.host()["limit"]


@pytest.mark.slow
def test_memory_stays_flat():
    setup = setup_of(num_episodes=10_000, episode_length=50, num_envs=4, validate_every=500)
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    program = launch.Program(launch.compile_program(setup), state)
    used = []
    for _ in range(100):
        program.run(100)
        used.append(memory.resident())
    assert max(used[50:]) < 1.02 * max(used[10:50])


# processes


@pytest.mark.parametrize(
    "flags",
    [
        ["--processes", "2"],
        ["--distributed", "--processes", "2", "--process", "0"],
        ["--distributed", "host:1", "--processes", "2"],
        ["--distributed", "host:1"],
    ],
)
def test_incomplete_addresses_are_refused(flags, capsys):
    assert cli.main(["train", "tactical", *flags]) == 2
    assert "--distributed HOST:PORT" in capsys.readouterr().err


def test_without_a_cluster_says_how():
    done = start(["train", "tactical", "--distributed"])
    said = done.communicate()[1]
    assert done.returncode == 2
    assert "Under Slurm start it with srun" in said


def address() -> str:
    """Return where a coordinator can listen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def both(arguments):
    """Start two processes of one training: the leader and one that follows."""
    together = [*arguments, "--distributed", address(), "--processes", "2"]
    return [start([*together, "--process", str(i)]) for i in range(2)]


def by_slurm(arguments):
    """Start both as srun does, which says by variables what JAX is to find."""
    for job in random.sample(range(4_096), 50):  # JAX takes the port from the job's number
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", 61_440 + job))
            break
    names = {"JOB_ID": job, "STEP_NODELIST": "127.0.0.1", "NTASKS": 2}
    step = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return [
        start([*arguments, "--distributed"], step | {"SLURM_PROCID": i, "SLURM_LOCALID": i})
        for i in "01"
    ]


@pytest.mark.parametrize("started", [both, by_slurm])
def test_a_leader_that_has_nothing_to_train_lets_the_other_end(started):
    leader, follower = started(["train", "tactical", "--set=num_envz=8"])
    try:
        assert "num_envs" in leader.communicate(timeout=120)[1]
        assert leader.returncode == 2
        follower.communicate(timeout=120)
        assert follower.returncode == 0
    finally:
        for process in (leader, follower):
            process.kill()
            process.communicate()


def test_a_process_that_is_gone_before_all_agree_is_no_traceback(monkeypatch):
    def lost(_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: Connection closed by peer\nmore")

    monkeypatch.setattr(cluster, "several", lambda: True)
    monkeypatch.setattr(cluster.multihost_utils, "process_allgather", lost)
    with pytest.raises(LostProcessError, match=r"is gone \(UNAVAILABLE: Connection closed by peer"):
        cluster.agreed(lambda: 1)


def start(arguments, variables=None):
    """Start `gm-jax ARGUMENTS`, which saves after every launch of its program."""
    code = (
        "from gm_jax.run import pace; pace.SAVE_SECONDS = 0; from gm_jax import cli; cli.console()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment() | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, *processes):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def test_two_processes_train_one_is_killed_and_one_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "run"
    sets = [f"--set={k}={str(v).replace('(', '[').replace(')', ']')}" for k, v in TINY.items()]
    train = ["train", "tactical", "--out", str(out), *sets]
    leader, follower = both([*train, "--set=num_episodes=100000"])
    try:
        wait_for((out / "checkpoints" / "1").is_dir, leader, follower)
        wait_for(lambda: len(RunDirectory(out).history()) > 1, leader, follower)
        follower.send_signal(signal.SIGKILL)
        said = leader.communicate(timeout=120)[1]
    finally:
        for process in (leader, follower):
            process.kill()
            process.communicate()
    assert leader.returncode == 1
    assert "Another process of this training is gone" in said
    assert "is kept; go on with `gm-jax train tactical --resume" in said
    assert "Traceback" not in said

    together_first = RunDirectory(out).history()[0]
    kept = max(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdecimal())
    resume = ["train", "tactical", "--resume", str(out), "--set", f"num_episodes={kept + 2}"]
    monkeypatch.setattr(training, "finish", lambda *_: {})  # its report is tested elsewhere
    assert cli.main(resume) == 0
    history = RunDirectory(out).history()
    assert [row["iteration"] for row in history] == list(range(1, kept + 3))

    setup = setup_of(num_episodes=100_000)
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    alone = launch.Program(launch.compile_program(setup), state)
    (first,) = metric_rows(setup, alone.run(1), done=0, count=1, seconds=1.0)
    for name in ("reward", "terms", "entropy", "critic_loss", "actor_norm"):
        assert together_first[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6)
