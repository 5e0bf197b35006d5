"""How many environments fit, what is used, what a model costs."""

import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gm_jax
from gm_jax import batch_trials, gpu_optimizer
from gm_jax.batch_trials import Trial
from gm_jax.errors import UserError
from gm_jax.run import memory


pytestmark = pytest.mark.usefixtures("quick_compiler")


MIB = 2**20
TINY = {
    **{"hidden_sizes": (16, 16), "batch_size": 8, "episode_length": 100, "rollout_length": 50},
    **{"num_minibatches": 2, "k_epochs": 2, "market_bars": 8_192},
}


@pytest.fixture(scope="module")
def trainer():
    return gm_jax.TacticalMAPPOTrainer(**TINY)


# the search


def test_sizes_are_small_factors_of_powers_of_two():
    found = batch_trials.sizes(4_096)
    assert found[:18] == [*range(1, 17), 18, 20]
    assert found[-3:] == [3_584, 3_840, 4_096]
    large = np.array([x for x in found if x >= 8])
    assert (large[1:] / large[:-1]).max() == 1.125
    assert all(x % 4 == 0 for x in batch_trials.sizes(500, lambda size: size % 4 == 0))


@pytest.mark.parametrize("seed", range(100))
def test_largest_is_near_the_best_and_never_far_above(seed):
    """Memory as machines have it: a compiler's peak, a fixed part, slope, noise."""
    rng = np.random.default_rng(seed)
    base, compiling, slope = rng.uniform([100, 300, 0.01], [300, 700, 1.0]) * MIB
    fixed, asked = rng.uniform(0, 20) * MIB, []

    def needed(size):
        return max(compiling, base + fixed + slope * size)

    def trial(size):
        asked.append(size)
        return Trial(int(fixed + slope * size), int(needed(size) * rng.uniform(0.99, 1.01)))

    candidates = batch_trials.sizes(65_536)
    room = int(1.1 * compiling + rng.uniform(0, 5_000) * MIB)
    found = batch_trials.largest(candidates, trial, room, first=int(rng.integers(8, 512)))
    sure = max(x for x in candidates if 1.01 * batch_trials.SPREAD * needed(x) <= room)
    assert found in asked
    assert needed(found) <= room
    assert found >= 0.8 * sure
    assert len(asked) <= batch_trials.MOST_TRIALS
    assert all(needed(x) <= 2.2 * room or x == asked[0] for x in asked)


def test_what_does_not_run_is_not_returned():
    def trial(size):
        return Trial(size * MIB, size * MIB) if size <= 100 else None

    candidates = batch_trials.sizes(4_096)
    assert batch_trials.largest(candidates, trial, 2_000 * MIB, first=64) in range(80, 101)
    assert batch_trials.largest(candidates, trial, 2_000 * MIB, first=1_024) in range(75, 101)
    with pytest.raises(UserError, match="Not even 1 fit into 100 MiB beyond what is in use"):
        batch_trials.largest(candidates, lambda size: None, 100 * MIB, first=64)


def test_hopeless_limits_cost_one_trial():
    asked = []

    def trial(size):
        asked.append(size)
        return Trial(size * MIB, (500 + size) * MIB)

    with pytest.raises(UserError, match="Not even"):
        batch_trials.largest(batch_trials.sizes(4_096), trial, 400 * MIB, first=64)
    assert asked == [64]


# what is tried


def test_batch_of_a_function_fits_by_the_compilers_account():
    weight = jnp.ones((64, 1_024))

    def model(x):
        hidden = jnp.tanh(x @ weight)
        return jnp.sort(hidden, axis=0).sum(-1)

    limit = memory.resident() + 12 * MIB
    found = gpu_optimizer.optimize_batch_size(model, (64,), memory_limit_bytes=limit)

    def program(size):
        shape = jax.ShapeDtypeStruct((size, 64), jnp.float32)
        return batch_trials.program_bytes(jax.jit(model).lower(shape).compile())

    assert program(found) < 12 * MIB + 1
    assert program(int(found / 0.75)) > 0.75 * 12 * MIB  # the trials have used a little
    with pytest.raises(UserError, match=r"neither a trainer nor a function of a batch \[B, 64\]"):
        gpu_optimizer.optimize_batch_size("model", (64,))


def test_only_running_out_of_memory_counts_as_too_large():
    def fail(error):
        raise error

    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert not batch_trials.runs(lambda: fail(exhausted))
    assert not batch_trials.runs(lambda: fail(MemoryError()))
    assert batch_trials.runs(lambda: jnp.zeros(3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        batch_trials.runs(lambda: fail(jax.errors.JaxRuntimeError("INTERNAL: broken")))


def test_a_trial_trains_and_says_what_it_took(trainer, capsys, monkeypatch):
    """As the process that a trial has on a CPU, and as here, where a GPU is."""
    settings = trainer.settings
    trial = batch_trials.of_training(trainer.system, settings, 8_192, here=True)(8)
    assert "trying 8 environments" in capsys.readouterr().err
    assert MIB / 4 < trial.program < 4 * MIB
    job = {"system": "tactical", "settings": settings.to_json(), "bars": 8_192}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job)))
    batch_trials.child()
    program, _ = json.loads(capsys.readouterr().out)
    assert program == trial.program


def test_a_trial_that_is_killed_is_too_large_and_one_that_fails_is_an_error(trainer, monkeypatch):
    outcome = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: outcome)
    trial = batch_trials.of_training(trainer.system, trainer.settings, 8_192, here=False)
    assert trial(64) is None
    outcome.returncode, outcome.stderr = 1, "RESOURCE_EXHAUSTED: Out of memory"
    assert trial(64) is None
    outcome.stderr = "ImportError: no module"
    with pytest.raises(RuntimeError, match="trial of 64 environments failed:\nImportError"):
        trial(64)
    outcome.returncode, outcome.stdout = 0, "a warning\n[5, 7]\n"
    assert trial(64) == (5, 7)


def test_trainers_get_a_size_that_goes_with_their_minibatches(monkeypatch):
    asked = []

    def trial(size):
        asked.append(size)
        return Trial(size * MIB, (200 + size) * MIB)

    monkeypatch.setattr(batch_trials, "of_training", lambda *_, **__: trial)
    trainer = gm_jax.TacticalMAPPOTrainer(**TINY | {"rollout_length": 25, "num_minibatches": 4})
    limit = memory.resident() + 400 * MIB
    found = gpu_optimizer.optimize_batch_size(trainer, memory_limit_bytes=limit)
    assert found % 4 == 0
    assert 150 <= found <= 200
    assert all(size % 4 == 0 for size in asked)
    gm_jax.TacticalMAPPOTrainer(**TINY | {"batch_size": found})


SCRIPT = """
import sys
import gm_jax
from gm_jax.run import memory
sizes = dict(hidden_sizes=(128, 128), episode_length=200, rollout_length=100, num_minibatches=2,
             k_epochs=2, market_bars=8192)
trainer = gm_jax.TacticalMAPPOTrainer(batch_size=int(sys.argv[2]), **sizes)
if sys.argv[1] == "optimize":
    print(gm_jax.gpu_optimizer.optimize_batch_size(trainer, memory_limit_bytes=int(sys.argv[3])))
else:
    trainer.train_episode("planted")
    print(memory.peak_resident())
"""


@pytest.mark.slow
def test_what_is_returned_trains_within_the_limit_and_a_third_more_does_not():
    """Processes of their own, compiled from nothing: about two minutes."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}

    def run(*arguments):
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return int(done.stdout.splitlines()[-1])

    limit = 2_000 * MIB
    found = run("optimize", 64, limit)
    assert run("train", found) <= limit
    assert run("train", int(found / 0.75 / 2) * 2) > limit


# memory and size


def test_memory_is_told_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_optimizer, "_samples", [])
    empty = gpu_optimizer.plot_memory_usage()
    assert "no samples yet" in empty.axes[0].texts[0].get_text()
    before = gpu_optimizer.monitor_memory()
    held = jnp.ones((16, MIB // 4), jnp.float32)
    after = gpu_optimizer.monitor_memory()
    for place in ("device", "host"):
        used, free, limit, peak = (
            after[f"{place}_{x}_bytes"] for x in ("used", "free", "limit", "peak")
        )
        assert 0 < used <= peak <= limit
        assert 0 < free <= limit
    assert after["arrays_bytes"] - before["arrays_bytes"] == held.nbytes == 16 * MIB
    assert json.dumps(after)
    figure = gpu_optimizer.plot_memory_usage(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 1_000
    assert len(figure.axes[0].lines) == 4
    assert len(figure.axes[0].lines[0].get_xdata()) == 2


def test_clear_cache_gives_programs_back():
    called = []

    @jax.jit
    def program(x):
        called.append(True)
        return x + 1

    program(1.0)
    program(2.0)
    assert len(called) == 1
    assert gpu_optimizer.clear_cache() >= 0
    assert program(3.0) == 4.0
    assert len(called) == 2


def test_profile_counts_networks_by_hand():
    trainer = gm_jax.TacticalMAPPOTrainer(**TINY)
    found = gpu_optimizer.profile_model(trainer)

    def layers(inputs, outputs):
        return [(inputs, 16), (16, 16), (16, outputs)]

    actor, critic = layers(7, 5), layers(6 + 3 + 3, 3)
    weights = 3 * sum(a * b for a, b in actor), sum(a * b for a, b in critic)
    biases = 3 * sum(b for _, b in actor), sum(b for _, b in critic)
    assert found["actor_parameters"] == weights[0] + biases[0]
    assert found["critic_parameters"] == weights[1] + biases[1]
    assert found["parameters"] == sum(weights) + sum(biases)
    assert found["parameter_bytes"] == 4 * found["parameters"]
    assert found["flops_per_forward"] == 2 * sum(weights)
    # acting, two values, and three times as much in each of two epochs, where the first layers
    # need no gradient of what they see
    first = 3 * 7 * 16 + 12 * 16
    assert found["flops_per_env_step"] == 2 * (7 * weights[0] + 8 * weights[1]) - 2 * 2 * first
    # networks, those that were best, two moments of Adam
    assert found["state_bytes"] > 4 * found["parameter_bytes"]


def test_default_networks_cost_what_the_bench_says():
    found = gpu_optimizer.profile_model(gm_jax.TacticalMAPPOTrainer())
    assert found["flops_per_env_step"] == pytest.approx(14.2e6, rel=0.01)
