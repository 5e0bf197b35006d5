"""The bench: what it counts, how it measures, what it compares with."""

import importlib.util
import json
import statistics
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax import cli, doctor
from gm_jax.bench import flops, hlo, latency, measure, peer, programs
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.run import launch
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import SYSTEMS, TACTICAL


pytestmark = pytest.mark.usefixtures("quick_compiler")


TINY = {
    **{"hidden_sizes": (16, 16), "num_envs": 8, "episode_length": 100, "rollout_length": 50},
    **{"num_minibatches": 2, "num_epochs": 2, "market_bars": 6_000, "layer_norm": 0},
}
KEYS = [
    *("system", "env_steps_per_second", "env_only_steps_per_second", "compile_seconds"),
    *("warm_start_seconds", "flops_per_env_step", "compiler_flops_per_env_step"),
    *("model_flops_per_second", "matmul_ceiling_flops_per_second", "model_flops_utilisation"),
    *("peak_memory_bytes", "program_memory_bytes", "num_envs", "hidden_sizes", "precision"),
    "device",
]
MEASURED = [key for key in KEYS if key.endswith(("per_second", "utilisation"))]
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "pytorch_mappo.py"


def setup_of(system, **changes):
    settings = system.settings.replace(**(TINY | changes))
    return prepare(system, settings, load(Source(market="planted"), settings, system.minutes))


# counting


def count(function, *arguments):
    return hlo.work(jax.jit(function).lower(*arguments).as_text(dialect="hlo"))


def test_products_are_counted_with_their_batch():
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 7), jnp.bfloat16)
    found = count(lambda a, b: jnp.matmul(a, b.astype(a.dtype)), a, b)
    assert found == (2 * 3 * 4 * 5 * 7, 4 * 3 * (4 * 5 + 5 * 7 + 4 * 7))
    assert count(lambda b: jnp.matmul(b, b.mT), b) == (2 * 3 * 5 * 7 * 5, 2 * 3 * (35 + 35 + 25))


def test_bodies_count_as_often_as_they_run():
    x = jnp.ones((4, 4))

    def nested(x):
        def outer(y, _):
            return jax.lax.scan(lambda z, _: (z @ x, None), y, None, length=5, reverse=True)[0], 0

        return jax.lax.scan(outer, x, None, length=7)[0] @ x

    assert count(nested, x).flops == (5 * 7 + 1) * 2 * 4**3


def test_a_loop_without_a_bound_counts_once_and_a_branch_not_at_all():
    x = jnp.ones((4, 4))
    loop = count(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: y @ x, x), x, jnp.int32(9))
    assert loop.flops == 2 * 4**3
    branch = count(lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x, lambda: x), x)
    assert branch == (0, 0)


REST = pytest.mark.slow  # tracing takes two seconds each, and these differ in little
CASES = [
    *(("central", True), ("local", False)),
    *(pytest.param(*case, marks=REST) for case in [("central", False), ("local", True)]),
]


@pytest.mark.parametrize(("critic", "full"), CASES)
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))
def test_hand_and_compiler_agree(system, full, critic):
    names = ("hidden_sizes", "layer_norm", "num_epochs")
    changes = {name: getattr(system.settings, name) for name in names if full}
    setup = setup_of(system, critic=critic, **changes)
    lowered = launch.lower(setup)  # nothing is compiled
    work = hlo.work(lowered.as_text(dialect="hlo"))
    by_compiler = work.flops / (setup.config.num_envs * setup.episode_length)
    assert by_compiler == pytest.approx(flops.flops_per_env_step(setup), rel=0.02)


def test_the_sum_by_hand():
    setup = setup_of(TACTICAL)
    # per weight and epoch 2 forward, 2 for its gradient, 2 for that of its inputs, if they have one
    actor, critic = 3 * np.array([7 * 16, 16 * 16, 16 * 5]), np.array([12 * 16, 16 * 16, 16 * 3])
    learnt = 2 * (6 * (actor.sum() + critic.sum()) - 2 * (actor[0] + critic[0]))
    assert flops.flops_per_env_step(setup) == 2 * actor.sum() + 2 * 2 * critic.sum() + learnt


# measuring


def test_parts_take_turns():
    called = []

    def part(name):
        def measured(seconds):
            called.append((name, seconds))
            return float(len(called))

        return measured

    found = measure.alternate({"a": part("a"), "b": part("b")}, 3, 0.5)
    assert called == [("a", 0), ("b", 0), *[("a", 0.5), ("b", 0.5)] * 3]
    assert found == {"a": [3, 5, 7], "b": [4, 6, 8]}


@pytest.fixture
def one_core(monkeypatch):
    """Keep the loop's threads from waiting for each other."""
    monkeypatch.setattr(doctor, "cpu_count", lambda: 1)


def bench(capsys, *flags):
    sets = [f"--set={key}={json.dumps(value)}" for key, value in TINY.items()]
    assert cli.main(["bench", "tactical", "--seconds", "0.2", "--json", *sets, *flags]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.mark.slow
def test_bench_measures_beside_pytorch(capsys, monkeypatch, one_core):
    rates = {}

    def kept(parts, repeats, seconds):
        rates.update(alternate(parts, repeats, seconds))
        return rates

    alternate = measure.alternate
    monkeypatch.setattr(measure, "alternate", kept)
    result, err = bench(capsys, "--compare")

    measured = [*MEASURED, "pytorch_env_steps_per_second", "speedup_over_pytorch"]
    spreads = [f"{name}_spread" for name in measured]
    rest = [name for name in result if name not in spreads]
    assert rest == [*KEYS, *measured[-2:]]
    assert all(np.isfinite(v) and v > 0 for v in result.values() if isinstance(v, float))
    for name in measured:
        least, most = result[f"{name}_spread"]
        assert least <= result[name] <= most
        assert f"{name} " in err

    assert {len(values) for values in rates.values()} == {measure.REPEATS}
    assert result["env_steps_per_second"] == statistics.median(rates["train"])
    paired = [ours / theirs for ours, theirs in zip(rates["train"], rates["pytorch"], strict=True)]
    assert result["speedup_over_pytorch"] == pytest.approx(statistics.median(paired))
    flops_each = result["flops_per_env_step"]
    shares = [flops_each * a / b for a, b in zip(rates["train"], rates["ceiling"], strict=True)]
    assert result["model_flops_utilisation"] == pytest.approx(statistics.median(shares))
    assert result["compiler_flops_per_env_step"] == pytest.approx(flops_each, rel=0.02)


@pytest.mark.parametrize("used", [True, False])
def test_the_second_compilation_comes_from_the_cache(used, monkeypatch):
    """Of a program so small that it takes no time, also where the user keeps none."""
    name, before = "jax_enable_compilation_cache", jax.config.jax_enable_compilation_cache
    folder, found = jax.config.jax_compilation_cache_dir, []

    def lower(_):
        return jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((4, 4), jnp.float32))

    monkeypatch.setattr(programs.launch, "lower", lower)
    jax.monitoring.register_event_listener(keep := lambda event, **_: found.append(event))
    jax.config.update(name, used)
    try:
        programs.compile_training(None)
        assert jax.config.jax_enable_compilation_cache is used
    finally:
        jax.config.update(name, before)
        jax.monitoring.unregister_event_listener(keep)
    outcomes = [event for event in found if event.endswith(("cache_misses", "cache_hits"))]
    assert [event.rpartition("_")[2] for event in outcomes] == ["misses", "hits"]
    assert jax.config.jax_compilation_cache_dir == folder


def test_memory_is_asked_for_other_sizes(monkeypatch):
    """Of a compiler that takes 10 bytes an environment."""

    def lower(setup):
        return SimpleNamespace(compile=lambda: setup.config.num_envs)

    monkeypatch.setattr(programs.launch, "lower", lower)
    monkeypatch.setattr(programs, "program_bytes", lambda compiled: 10 * compiled)
    assert programs.memory_by_num_envs(setup_of(TACTICAL)) == {"2": 20, "32": 320}
    # 3 × 10 rows are no multiple of 8 minibatches, 48 × 10 are
    odd = setup_of(TACTICAL, num_envs=12, rollout_length=10, num_minibatches=8)
    assert programs.memory_by_num_envs(odd) == {"48": 480}
    one = setup_of(TACTICAL, num_envs=1)
    assert programs.memory_by_num_envs(one) == {"4": 40}


@pytest.mark.slow
def test_memory_grows_with_the_environments(capsys):
    result, _ = bench(capsys, "--memory")
    sizes = result["memory_by_num_envs"]
    assert list(sizes) == ["2", "8", "32"]
    assert sizes["2"] < sizes["8"] == result["program_memory_bytes"] < sizes["32"]


@pytest.mark.parametrize("system", ["tactical", pytest.param("strategic", marks=pytest.mark.slow)])
def test_decisions_of_an_exported_model_are_timed(system):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    bars = {"market_bars": 4_000}
    found = latency.decision_latency(setup_of(SYSTEMS[system], **bars))
    assert 0.01 < found["decision_p50_ms"] <= found["decision_p99_ms"] < 1_000


def test_decisions_are_measured_last_and_refused_first(monkeypatch):
    """What exporting takes is no memory of the training."""
    called = []

    def noted(name):
        return lambda *_: called.append(name) or {name: 1}

    for name in ("endless", "_parts", "alternate", "_figures", "decision_latency"):
        monkeypatch.setattr(measure, name, noted(name))
    monkeypatch.setattr(programs, "compile_training", noted("compile_training"))
    monkeypatch.setattr(measure.package, "available", lambda: False)
    with pytest.raises(UserError, match="pip install torch"):
        measure.bench(TACTICAL, TACTICAL.settings, 1.0, decision=True)
    assert "compile_training" not in called
    monkeypatch.setattr(measure.package, "available", lambda: True)
    found = measure.bench(TACTICAL, TACTICAL.settings, 1.0, decision=True)
    assert called[-2:] == ["_figures", "decision_latency"]
    assert found == {"_figures": 1, "decision_latency": 1}


def test_percentiles_of_decisions():
    assert latency.percentiles(range(1, 202)) == {
        "decision_p50_ms": 101.0,
        "decision_p99_ms": 199.0,
    }


def test_measured_iterations_do_not_validate():
    """Short windows would validate more often than those of a run do."""
    setup = measure.endless(TACTICAL, TACTICAL.settings.replace(**TINY, num_episodes=1))
    arguments = (setup.market, setup.params, setup.hyper, setup.segments)
    state = learner.init_state(jax.random.key(0), setup.market, setup.params, setup.config)
    state, rows = learner.train(state, jnp.int32(11), *arguments, config=setup.config)
    assert np.isnan(rows["selection_score"][:11]).all()
    assert (rows["entropy"][:11] > 0).all()


def test_comparison_says_what_is_missing(capsys, monkeypatch, tmp_path):
    def said():
        assert cli.main(["bench", "tactical", "--compare"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return err

    with monkeypatch.context() as patch:
        patch.setattr(peer, "SCRIPT", tmp_path / "benchmarks" / "pytorch_mappo.py")
        assert "benchmarks/pytorch_mappo.py of the repository" in said()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "pip install torch" in said()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "a GPU that PyTorch does not see" in said()


# the PyTorch loop


@pytest.fixture(scope="module")
def loop():
    """The script as a module, on one thread: many for so little wait for each other."""
    spec = importlib.util.spec_from_file_location("pytorch_mappo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = module.torch.get_num_threads()
    module.torch.set_num_threads(1)
    yield module
    module.torch.set_num_threads(threads)


def sizes_of(system, **changes):
    return SimpleNamespace(**peer.sizes(setup_of(system, **changes)))


def parameters(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("critic", ["central", "local"])
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))
def test_both_have_the_same_networks(loop, system, critic):
    changes = {name: getattr(system.settings, name) for name in ("hidden_sizes", "layer_norm")}
    setup = setup_of(system, critic=critic, **changes)
    ours = learner.abstract_state(setup.market, setup.params, setup.config).networks
    theirs = loop.Learner(SimpleNamespace(**peer.sizes(setup)))
    for own, other in ((ours.actor, theirs.actor), (ours.critic, theirs.critic)):
        assert sum(x.size for x in jax.tree.leaves(own)) == sum(
            p.numel() for p in other.parameters()
        )
        kernels = [x.shape for x in jax.tree.leaves(own) if x.ndim == 3]
        assert sorted(kernels) == sorted(tuple(w.shape) for w in other.weights)


def test_the_pytorch_loop_learns(loop):
    """Its first feature shows the next bar's drift; long then, flat otherwise, is worth 2 bp."""
    learning = {"num_envs": 32, "lr_actor": 3e-3, "lr_critic": 3e-3, "num_epochs": 4}
    sizes = sizes_of(TACTICAL, **learning)
    trained = loop.Learner(sizes)
    rewards = [trained.update() for _ in range(30)]
    assert np.mean(rewards[:3]) < 0.2
    assert np.mean(rewards[-5:]) > 0.5


def test_the_pytorch_account_keeps_its_books(loop):
    sizes = sizes_of(TACTICAL)
    market = loop.Market(sizes, loop.torch.device("cpu"))
    torch, money = loop.torch, sizes.start_equity_usd
    equity = torch.full((sizes.num_envs,), money, dtype=torch.float64)
    price, held = market.close[market.t].double(), torch.zeros(sizes.num_envs)
    for _ in range(60):
        mask = market.observe()[2]
        action = torch.multinomial(mask.flatten(0, 1).float(), 1).view(sizes.num_envs, 3)
        market.step(action)
        opened, closed = market.open[market.t].double(), market.close[market.t].double()
        traded = market.position - held
        equity += 2 * (held * (opened - price) + market.position * (closed - opened))
        equity -= traded.abs() * (sizes.commission_usd + 0.25)
        price, held = closed, market.position
        assert ((held >= 0) & (held <= market.limit)).all()
    torch.testing.assert_close(market.equity.double(), equity, rtol=1e-6, atol=0.1)


def test_the_loop_ends_with_the_bench(monkeypatch, one_core):
    started = []

    class Kept(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Kept)
    with pytest.raises(KeyboardInterrupt), peer.pytorch(setup_of(TACTICAL)) as rate:
        assert rate(0) > 0
        raise KeyboardInterrupt
    assert started[0].returncode is not None
