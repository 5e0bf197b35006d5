"""Training runs that meet a full disk, a kill, a signal, a damaged file, another run, a NaN."""

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax import cli
from gm_jax.errors import NotFiniteError, UserError
from gm_jax.run import checkpoint, evaluate, launch, pace, training
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.source import Source
from gm_jax.systems import TACTICAL
from tests.run.brief import report_of_the_team_alone
from tests.run.test_training import TINY, assert_same, begin, content, learned, tiny


ITERATIONS = 32
SETS = [x for a in [*TINY, f"num_episodes={ITERATIONS}"] for x in ("--set", a)]
# processes that fork from one that has imported everything, JAX not yet started
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.run.test_resilience"])


@pytest.fixture(scope="module", autouse=True)
def plain():
    """Runs that are reported in short."""
    with pytest.MonkeyPatch.context() as patch:
        report_of_the_team_alone(patch.setattr, drawn=True)
        yield


@pytest.fixture
def unreported(monkeypatch):
    """Runs that end without the final evaluation."""
    monkeypatch.setattr(training, "write_results", lambda *_: {})


@pytest.fixture
def bare(unreported, monkeypatch):
    """Save after every iteration, and end without the final evaluation."""
    save_often(monkeypatch.setattr)


def save_often(set_attribute=setattr):
    set_attribute(pace, "SAVE_SECONDS", 0)
    set_attribute(pace, "INTERVAL_SECONDS", 0)


USUAL_PACE = {name: getattr(pace, name) for name in ("SAVE_SECONDS", "INTERVAL_SECONDS")}


def go_on(out):
    """Go on to the end at the usual pace."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in USUAL_PACE.items():
            patch.setattr(pace, name, seconds)
        training.train(training.resume(out))


def begun(out, **changes):
    return begin(out, **({"num_episodes": ITERATIONS} | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What is learned by a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_results", lambda *_: {})
        training.train(begun(out))
    return learned(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 4 iterations, to copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run = begun(out, num_episodes=4)
    with pytest.MonkeyPatch.context() as patch:
        save_often(patch.setattr)
        training.train(run)
    return out


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def files(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def half_written(folder):
    return [f for f in folder.rglob("*") if "part" in f.suffix or "tmp" in f.name]


def gm_jax(capture, *arguments):
    """Return (status, what was printed on stderr) of a command."""
    status = cli.main([str(a) for a in arguments])
    return status, capture.readouterr().err


def started(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def console(said, room, arguments):
    """Be `gm-jax ARGUMENTS`: stderr in a file, `room` bytes for each file after 3 iterations."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
    save_often()
    report_of_the_team_alone(setattr)
    if room is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails instead
        rows = training.metric_rows

        def fill_after_three(setup, metrics, done, count, seconds):
            if done >= 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            return rows(setup, metrics, done, count, seconds)

        training.metric_rows = fill_after_three
    sys.argv = ["gm-jax", *map(str, arguments)]
    cli.console()


def wait_for_lines(process, path, count):
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= count):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)


# writes that fail


@pytest.mark.parametrize(
    ("room", "named"),
    [pytest.param(8_000, "checkpoints/", marks=pytest.mark.slow), (2_500, "metrics.jsonl")],
)
def test_no_room_left_under_way(whole, tmp_path, bare, room, named):
    """Files of more than `room` bytes fail, as on a full disk, inside Orbax too."""
    out, said = tmp_path / "run", tmp_path / "said"
    process = started(console, said, room, ["train", "tactical", "--out", out, *SETS])
    process.join(120)
    assert process.exitcode == 2, said.read_text()
    last = said.read_text().splitlines()[-1]
    assert f"Cannot write {'the checkpoint ' if 'check' in named else ''}{out / named}" in last
    assert os.strerror(errno.EFBIG) in last
    assert f"gm-jax train tactical --resume {out}" in last
    kept = int(last.partition("of iteration ")[2].split()[0])
    assert kept >= 3
    assert "Traceback" not in said.read_text()
    usual = ("iteration ", "memory: ")
    others = [line for line in said.read_text().splitlines() if not line.startswith(usual)]
    assert others[2:] == [last]  # after the lines on the generated market
    assert not half_written(out)
    run = training.resume(out)
    assert int(run.state.iteration) == kept
    run.close()
    go_on(out)
    assert_same(whole, learned(out))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_full_device_under_the_metrics(whole, tmp_path, bare):
    run = begun(tmp_path / "run")
    run.directory.metrics.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl: No space left.* iteration 0 is kept"):
        training.train(run)
    run.directory.metrics.unlink()
    go_on(run.directory.path)
    assert_same(whole, learned(run.directory.path))


def test_no_room_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoints/0: No space left.*by --out"):
        begun(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("blocked", "said"),
    [
        ("plots", "plots: File exists"),
        ("validation_results.json", "validation_results.json: Is a directory"),
        *(
            pytest.param(name, f"{name}: Is a directory", marks=pytest.mark.slow)
            for name in ("plots/equity_test.png", "training_statistics.json")
        ),
    ],
)
def test_results_that_cannot_be_written(copy, capsys, blocked, said):
    """The training is done and kept; once there is room again, --resume writes what is missing."""
    before = files(copy)
    target = copy / blocked
    if target.is_dir():
        shutil.rmtree(target)
        target.touch()
    else:
        target.unlink()
        (target / "in the way").mkdir(parents=True)
    status, err = gm_jax(capsys, "train", "tactical", "--resume", copy)
    assert status == 2
    last = err.splitlines()[-1]
    assert f"Cannot write {copy / said}. The checkpoint of iteration 4 is kept" in last
    assert not half_written(copy)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert gm_jax(capsys, "train", "tactical", "--resume", copy)[0] == 0
    assert files(copy).keys() == before.keys()
    name = "validation_results.json"
    assert json.loads((copy / name).read_text()) == json.loads(
        before[(copy / name).relative_to(copy)]
    )


@pytest.mark.parametrize("blocked", ["model_config.json", "metrics.jsonl"])
def test_resume_that_cannot_write(copy, blocked):
    (copy / f"{blocked}.part" / "in the way").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "clean", lambda self: None)
        with pytest.raises(
            UserError, match=rf"Cannot write .*{blocked}: Is a directory.* 4 is kept"
        ):
            training.resume(copy)
    run = training.resume(copy)  # what half a write left is removed
    run.close()
    assert not half_written(copy)


def test_folder_that_is_lost_under_way(whole, tmp_path, bare, monkeypatch):
    """A file stands where the checkpoints were after 3 iterations, as if the disk had gone."""
    run = begun(tmp_path / "run")
    folder, aside = run.directory.checkpoints, tmp_path / "aside"
    append = run.directory.append_metrics

    def lose(rows):
        append(rows)
        if rows[-1]["iteration"] == 4:
            folder.rename(aside)
            folder.touch()

    monkeypatch.setattr(run.directory, "append_metrics", lose)
    with pytest.raises(UserError, match=r"checkpoints/4: Not a directory.* iteration 3 is kept"):
        training.train(run)
    folder.unlink()
    aside.rename(folder)
    go_on(run.directory.path)
    assert_same(whole, learned(run.directory.path))


# a state for other settings, a damaged state


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr_actor", 0.001, "lr_actor 0.0003, now 0.001"),
        ("allow_short", True, "allow_short False, now True"),
        ("purge_bars", None, "purge_bars 10, now 20"),
    ],
)
def test_settings_changed_by_hand_are_named(tmp_path, key, value, said):
    out = tmp_path / "run"
    begun(out, purge_bars=10).close()
    record = json.loads((out / "model_config.json").read_text())
    settings = {k: v for k, v in record["settings"].items() if k != key}
    settings |= {} if value is None else {key: value}  # None: the line was taken out
    (out / "model_config.json").write_text(json.dumps(record | {"settings": settings}))
    before = files(out)
    for use in (training.resume, evaluate.evaluate_run):
        with pytest.raises(UserError, match=rf"other settings.*{said}\. Put the old ones back"):
            use(out)
    assert files(out) == before


@pytest.mark.usefixtures("unreported")
def test_more_iterations_may_be_asked_for_by_hand(copy):
    record = json.loads((copy / "model_config.json").read_text())
    record["settings"]["num_episodes"] = 6
    (copy / "model_config.json").write_text(json.dumps(record))
    training.train(training.resume(copy))
    assert [row["iteration"] for row in RunDirectory(copy).history()] == [1, 2, 3, 4, 5, 6]


def test_generated_market_changed_by_hand_is_told_from_a_file(copy):
    record = json.loads((copy / "model_config.json").read_text())
    record["settings"]["market_bars"] = 7000
    (copy / "model_config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="put source, market_bars and market_parameters"):
        training.resume(copy)


def test_state_of_another_version_is_refused(copy, monkeypatch):
    monkeypatch.setattr(checkpoint, "version", lambda name: "0.9.9")
    with pytest.raises(UserError, match=r"by gm-jax .* \(schema 1\), this is 0.9.9 \(schema 1\)"):
        training.resume(copy)


def test_bars_that_change_under_way(tmp_path, capsys):
    """The end of the run reads them no more; who opens it again is told."""
    bars, out = tmp_path / "bars.csv", tmp_path / "run"
    made = ["--market", "planted", "--minutes", 5, "--bars"]
    assert gm_jax(capsys, "data", "synth", *made, 6000, "--out", bars)[0] == 0
    run = training.start(TACTICAL, tiny(num_episodes=2), Source(data=str(bars)), out)
    assert gm_jax(capsys, "data", "synth", *made, 6001, "--out", bars)[0] == 0
    training.train(run)
    assert (out / "validation_results.json").exists()
    trained_on = json.loads((out / "model_config.json").read_text())["data_sha256"]
    for command in (["train", "tactical", "--resume", out], ["evaluate", out]):
        status, err = gm_jax(capsys, *command)
        assert status == 2
        assert f"{bars} is not what this run was trained on (SHA-256 " in err
        assert f"expected {trained_on[:12]}…); put the original file back." in err


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damage_to_any_file_is_seen_and_the_one_before_used(finished, tmp_path, capsys):
    names = sorted(f.relative_to(finished) for f in (finished / "checkpoints/4").rglob("*"))
    names = [name for name in names if (finished / name).is_file()]
    assert len(names) > 5
    setup = training.resume(finished)
    setup.close()
    damages = [flip, lambda f: os.truncate(f, f.stat().st_size // 2), lambda f: f.unlink()]
    for number, name in enumerate(names):
        copy = shutil.copytree(finished, tmp_path / str(number))
        damages[number % 3](copy / name)
        state = Checkpoints(copy / "checkpoints").restore(setup.setup)
        assert int(state.iteration) == 3, name
        err = capsys.readouterr().err
        assert f"{copy / 'checkpoints/4'} is damaged and left out" in err
        assert (copy / "checkpoints/4").exists()  # reading alone changes nothing
        shutil.rmtree(copy)


def test_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(copy, finished, capsys):
    flip(max((copy / "checkpoints/4").rglob("*"), key=lambda f: f.is_file() * f.stat().st_size))
    run = training.resume(copy)
    assert int(run.state.iteration) == 3
    assert [row["iteration"] for row in run.directory.history()] == [1, 2, 3]
    assert "Traceback" not in capsys.readouterr().err
    training.train(run)
    assert_same(content(finished), content(copy))


def test_no_whole_checkpoint_is_said(copy):
    for number in (3, 4):
        (copy / "checkpoints" / str(number) / "run.json").unlink()
    before = files(copy)
    for use in (training.resume, evaluate.evaluate_run):
        with pytest.raises(UserError, match=r"No whole checkpoint in .* \(4, 3 damaged\)"):
            use(copy)
    assert files(copy) == before | {k: v for k, v in files(copy).items() if k.name == ".lock"}


# NaN


def poison(run, **numbers):
    """Put a number that is none into what the program is given."""
    params, hyper = run.setup.params, run.setup.hyper
    for name, number in numbers.items():
        if name in params.reward_weights:
            weights = params.reward_weights | {name: jnp.float32(number)}
            params = params.replace(reward_weights=weights)
        elif name == "start_equity":
            params = params.replace(start_equity=jnp.int32(number))
        else:
            hyper = hyper.replace(**{name: jnp.float32(number)})
    run.setup = dataclasses.replace(run.setup, params=params, hyper=hyper)
    run.compiled = None  # it has the numbers of before


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"drawdown": np.inf}, "the reward of risk is nan"),
        pytest.param(
            {"shortfall": np.nan}, "the reward of execution is nan", marks=pytest.mark.slow
        ),
        ({"start_equity": 0}, "the reward term equity is nan"),
        ({"lr_actor": np.nan}, "actor_norm of tactical is nan"),
        pytest.param({"lr_critic": np.inf}, "critic_norm is (nan|inf)", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_finite_is_named_and_never_saved(tmp_path, bare, numbers, said):
    """One update an iteration: its losses are taken before it, only its networks are broken."""
    once = {"rollout_length": 100, "num_minibatches": 1, "num_epochs": 1, "num_episodes": 2}
    run = begun(tmp_path / "run", **once)
    state, good = run.checkpoints.restore(run.setup), run.setup
    poison(run, **numbers)
    with pytest.raises(NotFiniteError, match=rf"Iteration 1: {said}; .* iteration 0, is"):
        training.train(run)
    assert [row["iteration"] for row in run.directory.history()] == [1]  # to be looked at
    checkpoints = Checkpoints(run.directory.checkpoints)
    assert checkpoints._iterations() == [0]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(good).networks, state.networks)


def test_status_of_a_run_that_is_not_finite(tmp_path, capsys, monkeypatch):
    flags = ["--set", "lr_actor=1e30", "--json"]
    status, err = gm_jax(capsys, "train", "tactical", "--out", tmp_path / "run", *SETS, *flags)
    assert status == 1
    assert "gm-jax: Iteration 1: " in err.splitlines()[-1]
    assert int(training.resume(tmp_path / "run").state.iteration) == 0


# signals


def test_sigterm_saves_and_ends_with_130(whole, tmp_path, bare):
    out, said = tmp_path / "run", tmp_path / "said"
    process = started(console, said, None, ["train", "tactical", "--out", out, *SETS])
    wait_for_lines(process, out / "metrics.jsonl", 2)
    process.terminate()
    process.join(120)
    assert process.exitcode == 130, said.read_text()
    assert "SIGTERM: saving after this interval" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert (out / "validation_results.json").exists()  # of what was trained
    rows = RunDirectory.open(out).history()
    run = training.resume(out)
    assert int(run.state.iteration) == rows[-1]["iteration"] < ITERATIONS
    run.close()
    go_on(out)
    assert_same(whole, learned(out))


def sending(number, call, times=1):
    """Return the function, interrupted by a signal as it begins."""

    def interrupted(*arguments, **kwargs):
        for _ in range(times):
            signal.raise_signal(number)
        return call(*arguments, **kwargs)

    return interrupted


HANDLERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", HANDLERS)
def test_signal_inside_a_save_waits_for_its_end(whole, tmp_path, bare, monkeypatch, number):
    run = begun(tmp_path / "run")
    before = [signal.getsignal(s) for s in HANDLERS]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sums", sending(number, checkpoint._sums))
        training.train(run)
    assert [signal.getsignal(s) for s in HANDLERS] == before
    assert run.interrupted
    assert run.checkpoints.newest == 1
    go_on(run.directory.path)
    assert_same(whole, learned(run.directory.path))


def test_second_signal_inside_a_save_ends_at_once(whole, tmp_path, bare, monkeypatch, capfd):
    run = begun(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sums", sending(signal.SIGTERM, checkpoint._sums, times=2))
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            training.train(run)
    err = capfd.readouterr().err
    assert "SIGTERM: saving after this interval" in err
    assert "The checkpoint of iteration 0 is kept" in err
    assert half_written(run.directory.path)
    go_on(run.directory.path)
    assert not half_written(run.directory.path)
    assert_same(whole, learned(run.directory.path))


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "prepare"),
        (signal.SIGTERM, "metric_rows"),
        (signal.SIGINT, "write_results"),
        pytest.param(signal.SIGTERM, "prepare", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "metric_rows", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "write_results", marks=pytest.mark.slow),
    ],
)
def test_signal_outside_the_loop_ends_at_once(
    finished, copy, tmp_path, unreported, monkeypatch, capfd, number, moment
):
    """Before and after the loop nothing is waited for; inside it the interval is finished."""
    before = [signal.getsignal(s) for s in HANDLERS]
    with monkeypatch.context() as patch:
        patch.setattr(training, moment, sending(number, getattr(training, moment)))
        more = ["--set", "num_episodes=5"]
        status, err = gm_jax(capfd, "train", "tactical", "--resume", copy, *more)
    assert status == 130
    assert number.name in err
    assert [signal.getsignal(s) for s in HANDLERS] == before
    if moment == "write_results":
        assert "The checkpoint of iteration 5 is kept; go on with `gm-jax train" in err
        assert err.splitlines()[-1] == f"gm-jax: interrupted by {number.name}"
    assert gm_jax(capfd, "train", "tactical", "--resume", copy, *more)[0] == 0
    assert [row["iteration"] for row in RunDirectory(copy).history()] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("bare")
def test_a_device_out_of_memory_is_named_with_what_is_kept(copy, monkeypatch):
    """In the second iteration of those that a resumed run has left."""

    def run(program, count):
        if int(program.state().iteration) == 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return usual(program, count)

    usual = launch.Program.run
    with monkeypatch.context() as patch:
        patch.setattr(launch.Program, "run", run)
        said = r"too little memory.*num_envs=.*iteration 5 is kept; go on with .* --resume"
        with pytest.raises(UserError, match=said):
            training.train(training.resume(copy, changes={"num_episodes": 6}))
    assert training.train(training.resume(copy))["env_steps"] == 6 * 100 * 8


@pytest.mark.usefixtures("unreported")
def test_outside_the_main_thread_signals_are_left_alone(copy):
    run = training.resume(copy, changes={"num_episodes": 5})
    before = [signal.getsignal(s) for s in HANDLERS]
    summaries = []
    thread = threading.Thread(target=lambda: summaries.append(training.train(run)))
    thread.start()
    thread.join()
    assert summaries[0]["env_steps"] == 5 * 100 * 8
    assert [signal.getsignal(s) for s in HANDLERS] == before


# two at once


def test_second_run_is_refused_and_reading_is_not(tmp_path, capsys):
    """While a run saves all the time: reading sees whole checkpoints, writing is refused."""
    out, said = tmp_path / "run", tmp_path / "said"
    endless = [*SETS, "--set", "num_episodes=100000"]
    process = started(console, said, None, ["train", "tactical", "--out", out, *endless])
    wait_for_lines(process, out / "metrics.jsonl", 2)
    config = (out / "model_config.json").read_bytes()
    status, err = gm_jax(capsys, "train", "tactical", "--resume", out, "--set", "num_episodes=9")
    assert status == 2
    assert f"{out} is in use by another run (process {process.pid}). Wait for its end" in err
    assert (out / "model_config.json").read_bytes() == config
    setup, _ = training.reopen(RunDirectory(out))
    seen = []
    while len(seen) < 20:
        seen.append(int(Checkpoints(out / "checkpoints").restore(setup).iteration))
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    assert evaluate.evaluate_run(out)["split"] == "test"
    assert "damaged" not in capsys.readouterr().err
    with pytest.raises(UserError, match="is not empty; name another with --out, or go on with it"):
        begun(out)
    assert process.is_alive(), said.read_text()
    process.kill()  # the kernel lets go of the lock
    process.join()
    training.resume(out).close()


def test_two_new_runs_in_one_second_get_two_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, other = (RunDirectory.create("tactical", None) for _ in range(2))
    assert one.path != other.path
    with pytest.raises(UserError, match="in use by another run"):
        RunDirectory(one.path).lock()
    one.release()
    again = RunDirectory(one.path)
    again.lock()
    for directory in (again, other):
        directory.release()


def test_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    def none(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    RunDirectory.create("tactical", tmp_path / "run").release()
    assert "on a file system without locks; let no second run use it" in capsys.readouterr().err


# kill -9


def announcing(pipe, out):
    """Resume a run that saves after every iteration and says when."""
    save_often()
    save = Checkpoints.save

    def announce(self, setup, state):
        iteration = int(state.iteration)
        pipe.send(("saving", iteration))
        save(self, setup, state)
        pipe.send(("saved", iteration))

    Checkpoints.save = announce
    run = training.resume(out)
    pipe.send(("standing", int(run.state.iteration)))
    training.train(run)


def killed(out, moment, delay):
    """Run to `delay` seconds into the second save, at most for `moment` seconds, then kill -9.

    Returns:
        What the run announced.
    """
    here, there = PROCESSES.Pipe(duplex=False)
    process, end = started(announcing, there, out), time.monotonic() + moment
    there.close()
    heard = []
    while [word for word, _ in heard].count("saving") < 2 and here.poll(end - time.monotonic()):
        heard.append(here.recv())
    if time.monotonic() < end:
        time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    try:
        while here.poll():
            heard.append(here.recv())
    except EOFError:
        here.close()
    return heard


@pytest.mark.parametrize("kills", [7, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_change_nothing(whole, tmp_path, unreported, kills):
    """Kills inside saves, between them and before the first: what was saved is never lost."""
    out, chance = tmp_path / "run", random.Random(0)
    iterations = ITERATIONS * (1 + kills // 10)
    begun(out, num_episodes=iterations).close()
    standing = inside = 0
    for number in range(kills):
        if number % 5 < 4:
            heard = killed(out, moment=60, delay=(0, 0.005, 0.02, 0.06)[number % 5])
        else:
            heard = killed(out, moment=chance.uniform(0, 2), delay=0)
        found = [iteration for word, iteration in heard if word == "standing"]
        began = [iteration for word, iteration in heard if word == "saving"]
        ended = [iteration for word, iteration in heard if word == "saved"]
        assert all(standing <= iteration for iteration in found)  # nothing saved was lost
        inside += len(began) > len(ended)
        standing = max([standing, *found, *ended])
    assert inside >= 0.4 * kills
    assert 0.8 * kills <= standing < iterations
    training.train(training.resume(out))
    if iterations > ITERATIONS:
        training.train(begun(tmp_path / "whole", num_episodes=iterations))
        whole = learned(tmp_path / "whole")
    assert_same(whole, learned(out))
    assert not half_written(out)


def dying_at_first(out):
    """Begin a run, and be killed inside its first save."""
    checkpoint._sums = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    begun(out)


def test_kill_before_the_first_checkpoint(tmp_path, capsys):
    out = tmp_path / "run"
    process = started(dying_at_first, out)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert half_written(out)
    status, err = gm_jax(capsys, "train", "tactical", "--resume", out)
    assert status == 2
    assert "There is nothing to go on from; start a run with `gm-jax train`" in err
    status, err = gm_jax(capsys, "train", "tactical", "--out", out, *SETS)
    assert status == 2
    assert "not empty; name another with --out." in err
