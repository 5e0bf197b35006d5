"""The trainer classes: the calls of the old trainers, on the program of `gm-jax train`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import gm_jax
from gm_jax import cli, doctor
from gm_jax.errors import NotFiniteError, UserError
from gm_jax.export import package
from gm_jax.mappo import learner
from gm_jax.market import loader
from gm_jax.market.synthetic import generate
from gm_jax.market.writing import write_csv
from gm_jax.run import training
from gm_jax.run.directory import RunDirectory
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import TACTICAL
from gm_jax.trainer import arguments, data, files, learnt
from tests.export import teams


pytestmark = pytest.mark.usefixtures("quick_compiler")


TINY = {
    **{"hidden_sizes": (16, 16), "batch_size": 8, "episode_length": 100, "rollout_length": 50},
    **{"num_minibatches": 2, "k_epochs": 2, "num_episodes": 4, "validate_every": 2},
}
CLOCKS = {"episodes_per_minute", "env_steps_per_second", "memory_bytes"}
BARS = 8_192  # a whole class: what is not padded has the same shapes
needs_torch = pytest.mark.skipif(not package.available(), reason="needs PyTorch")


def tiny(**changes):
    return gm_jax.TacticalMAPPOTrainer(**(TINY | changes))


def frame(bars=BARS, seed=0):
    """Return bars as a user has them: text stamps, New York time."""
    world = generate("planted", bars=bars, minutes=5, seed=seed)
    stamps = pd.DatetimeIndex(world.bars.time.astype("datetime64[ns]"), tz="UTC")
    local = stamps.tz_convert("America/New_York").strftime("%Y-%m-%d %H:%M:%S")
    names = ("open", "high", "low", "close", "volume")
    values = {name.capitalize(): getattr(world.bars, name) for name in names}
    return pd.DataFrame({"Date": local, **values})


@pytest.fixture(scope="module")
def df():
    return frame()


@pytest.fixture(scope="module")
def other():
    """Fewer bars of another history, in the same class."""
    return frame(6_000, seed=1)


def two_episodes(df):
    """Return a trainer after two episodes; the validation of the second is the best."""
    trainer = tiny()
    for _ in range(2):
        trainer.train_episode(data=df)
    return trainer


@pytest.fixture
def trained(df):
    """A trainer of one's own."""
    return two_episodes(df)


@pytest.fixture(scope="module")
def ready(df):
    """A trainer that is looked at, and not trained on."""
    return two_episodes(df)


def leaves(state):
    return [
        np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for x in jax.tree.leaves(state)
    ]


def assert_same(one, two, rows=True):
    """Require the same state and, but for clocks, the same history of two trainers or runs."""
    for a, b in zip(leaves(one.state), leaves(two.state), strict=True):
        np.testing.assert_array_equal(a, b)
    if rows:
        plain = [
            [{k: v for k, v in row.items() if k not in CLOCKS} for row in of.history]
            for of in (one, two)
        ]
        assert plain[0] == plain[1]


# making one


def test_import_takes_neither_jax_nor_torch():
    script = (
        "import sys, gm_jax\n"
        "assert not {'jax', 'torch', 'pandas'} & set(sys.modules)\n"
        "from gm_jax import TacticalMAPPOTrainer, StrategicMAPPOTrainer, export_models\n"
        "from gm_jax import gpu_optimizer\n"
        "assert gm_jax.gpu_optimizer is gpu_optimizer\n"
        "assert 'jax' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="has no attribute 'TacticalTrainer'"):
        _ = gm_jax.TacticalTrainer


def test_compiled_programs_are_kept_even_where_jax_was_there_first(tmp_path):
    script = (
        "import jax, jax.numpy as jnp\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"  # JAX has looked for a cache and found none
        "import gm_jax\n"
        "gm_jax.TacticalMAPPOTrainer()\n"
        "jax.jit(lambda x: jnp.sin(x) + 2)(1.0)\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == str(tmp_path / "gm_jax"), done.stderr
    assert any(path.name.endswith("-cache") for path in (tmp_path / "gm_jax").iterdir())


def test_sample_calls_make_trainers_of_the_documented_sizes():
    trainer = gm_jax.TacticalMAPPOTrainer(state_dim=7, action_dim=5, n_agents=3, device="cpu")
    assert trainer.settings == TACTICAL.settings
    assert trainer.device.platform == "cpu"
    strategic = gm_jax.StrategicMAPPOTrainer(state_dim=13, action_dim=7, n_agents=3)
    assert strategic.settings.hidden_sizes == (512, 512, 256)
    found = gm_jax.TacticalMAPPOTrainer(
        lr_actor=1e-4, lr_critic=3e-4, gamma=0.9, eps_clip=0.1, k_epochs=2, batch_size=16, seed=5
    ).settings
    assert (found.lr_actor, found.lr_critic, found.gamma) == (1e-4, 3e-4, 0.9)
    assert (found.clip_eps, found.num_epochs, found.num_envs, found.seed) == (0.1, 2, 16, 5)
    features = ("return_60", "rsi_14", "rsi_21")
    assert gm_jax.TacticalMAPPOTrainer(state_dim=4, features=features).settings.features == features


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state_dim": 9}, r"state_dim is 9, but 6 features .* make 7.*8 features|features=\["),
        ({"action_dim": 7}, "action_dim is 7, but the tactical team has 5: HOLD, BUY_SMALL"),
        ({"n_agents": 2}, "n_agents is 2, but the tactical team has 3: tactical, risk"),
        ({"lr_actr": 1e-3}, "Unknown setting `lr_actr`.*Did you mean `lr_actor`"),
        ({"batch_size": "many"}, "`num_envs` is 'many', expected a whole number"),
        ({"batch_size": 8, "num_envs": 16}, "`num_envs` is another name of `num_envs`|differ"),
        ({"batch_size": 7, "num_minibatches": 4}, "num_minibatches.*a divisor of"),
        ({"device": "tpu"}, "device is 'tpu', expected 'cuda'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_mend(given, said):
    with pytest.raises(UserError, match=said):
        gm_jax.TacticalMAPPOTrainer(**given)


@pytest.mark.parametrize(
    ("batch", "minibatches"), [(1, 1), (10, 2), (16, 4), (32, 4), (64, 4), (33, 3)]
)
def test_any_batch_size_has_minibatches(batch, minibatches):
    found = gm_jax.TacticalMAPPOTrainer(batch_size=batch).settings
    assert (found.num_envs, found.num_minibatches) == (batch, minibatches)


def test_cuda_without_a_gpu_warns_and_uses_the_cpu(monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_gpus", doctor.Nvidia)
    with pytest.warns(UserWarning, match="no NVIDIA GPU here, training runs on the CPU") as seen:
        trainer = gm_jax.TacticalMAPPOTrainer(device="cuda")
    assert trainer.device.platform == "cpu"
    assert Path(seen[0].filename) == Path(__file__)  # it points at the caller


def test_a_gpu_that_jax_does_not_see_is_an_error_with_the_mend(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("JAX sees the GPU")
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: doctor.Nvidia(("NVIDIA L4",), "535.1"))
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    with pytest.raises(UserError, match=r"JAX does not see the GPU \(NVIDIA L4\): .*cuda12"):
        gm_jax.TacticalMAPPOTrainer(device="cuda:0")


# training


def test_sample_loop_learns_what_the_command_line_learns(df, other, tmp_path, monkeypatch):
    """Bit for bit, though the trainer's arrays are padded: other shapes, another program."""
    monkeypatch.setattr(training, "finish", lambda *_: {})
    write_csv(generate("planted", bars=6_000, minutes=5, seed=1).bars, tmp_path / "bars.csv")
    # wild enough to trade in validation
    given = TINY | {
        "lr_actor": 0.05,
        "target_kl": 100.0,
        "allow_short": True,
        "initial_neutral": 0.2,
    }
    changes = {arguments.OLD_NAMES.get(name, name): value for name, value in given.items()}
    settings = TACTICAL.settings.replace(**changes)
    source = Source(data=str(tmp_path / "bars.csv"))
    run = training.start(TACTICAL, settings, source, tmp_path / "run")
    training.train(run)

    trainer = tiny(**given)
    compiled = learner.train._cache_size()
    for episode in range(4):
        reward, steps = trainer.train_episode(data=other)
        if episode % 50 == 0:
            trainer.plot_training_progress()
    assert steps == 800
    assert reward == trainer.episode_rewards[-1]
    assert len(run.setup.market.bars) == 6_000
    assert len(trainer.engine.setup.market.bars) == BARS
    assert len(trainer.engine.setup.segments.first) > len(run.setup.segments.first)
    for a, b in zip(leaves(run.state), leaves(trainer.engine.state), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in trainer.history]
    assert rows == [
        {k: v for k, v in row.items() if k not in CLOCKS} for row in run.directory.history()
    ]
    assert any(row["selection_score"] for row in rows)  # neither none nor nothing

    # another length of the class is no other program
    tiny(initial_neutral=0.2).train_episode(data=df)
    assert learner.train._cache_size() - compiled <= 1


def test_what_is_padded_is_never_played(other):
    """Nonsense in its place changes nothing."""
    one, two = tiny(), tiny()
    for trainer in (one, two):
        trainer.set_data(other)
    setup = two.engine.setup
    count, segments = len(setup.loaded.bars), setup.segments
    nonsense = {name: getattr(setup.market, name).at[count:].set(-(2**30)) for name in data.LONG}
    first = jnp.where(segments.steps > 0, segments.first, BARS - 1)
    two.engine.setup = replace(
        setup, market=setup.market.replace(**nonsense), segments=segments.replace(first=first)
    )
    for trainer in (one, two):
        trainer.train(2)
    assert_same(one.engine, two.engine)


def test_data_are_read_once_and_again_when_they_change(df, tmp_path, monkeypatch):
    read = []
    whole = loader.load
    monkeypatch.setattr(loader, "load", lambda *a, **k: read.append(True) or whole(*a, **k))
    mine, trainer = df.copy(), tiny()
    trainer.set_data(mine)
    state = trainer.engine.state
    trainer.set_data(mine.copy())
    trainer.set_data(mine)
    assert len(read) == 1
    assert trainer.engine.state is state

    mine.loc[100, "Volume"] += 1
    trainer.set_data(mine)
    assert len(read) == 2
    assert trainer.engine.state is not state

    mine.to_csv(tmp_path / "bars.csv", index=False)
    held = trainer.engine.state
    for _ in range(2):
        trainer.set_data(str(tmp_path / "bars.csv"))
    assert len(read) == 3
    assert trainer.engine.state is held  # the file holds the same bars


def test_too_little_memory_says_how_to_take_less(trained, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(learner, "train", exhausted)
        with pytest.raises(UserError, match=r"too little memory for 8 environments.*batch_size="):
            trained.train_episode()
    trained.train_episode()  # what was learnt is kept
    assert len(trained.history) == 3


def test_no_data_and_no_such_data_are_refused(df):
    with pytest.raises(UserError, match=r"No data to train on. Give bars.*train_episode\(data=df"):
        tiny().train_episode()
    with pytest.raises(UserError, match=r"No file nowhere.csv"):
        tiny().train_episode(data="nowhere.csv")
    with pytest.raises(UserError, match=r"data is of list, expected a DataFrame.*planted"):
        tiny().train_episode(data=[1, 2])
    with pytest.raises(UserError, match="Column missing: volume"):
        tiny().train_episode(data=df.drop(columns="Volume"))
    with pytest.raises(UserError, match="usable 5-minute bars; expected at least 1,000"):
        tiny().train_episode(data=df[:900])
    trainer = tiny()
    trainer.set_data(df)
    with pytest.raises(UserError, match=r"Found 5-minute bars|Column missing"):
        trainer.set_data(df.drop(columns="Close"))
    assert trainer.engine.dataset.loaded.label == data.FRAME  # the last good ones


def test_generated_markets_and_stamps_that_need_telling(df):
    trainer = tiny(market_bars=BARS)
    trainer.set_data("planted")
    assert trainer.engine.dataset.source == Source(market="planted", seed=0)
    bare = df.assign(Date=pd.to_datetime(df["Date"]) + pd.Timedelta(hours=3))
    trainer.set_data(bare, tz="Etc/GMT+2")  # another clock than any exchange's
    assert trainer.engine.dataset.source.tz == "Etc/GMT+2"
    state = trainer.engine.state
    trainer.engine.take(bare.copy())  # as the loop of `train_episode(data=df)` does
    assert trainer.engine.dataset.source.tz == "Etc/GMT+2"
    assert trainer.engine.state is state


def raw_logits(trainer, states):
    nets, scaler = trainer.engine.networks()
    return np.stack([teams.reference(nets.actor, i, states, scaler) for i in range(3)])


def states_around(trainer, count=30):
    rng = np.random.default_rng(4)
    _, scaler = trainer.engine.networks()
    features = scaler.mean + scaler.scale * rng.standard_normal((count, len(scaler.mean)))
    return np.column_stack([features, rng.uniform(-1, 1, count)]).astype(np.float32)


def test_other_data_move_the_networks_and_begin_new_windows(trained, other):
    before = trained.engine.setup, trained.engine.state
    states = states_around(trained)
    wanted = raw_logits(trained, states)
    assert np.isfinite(before[1].best.score)
    trained.set_data(other)
    setup, state = trained.engine.trained()
    assert not setup.scaler.equals(before[0].scaler)
    np.testing.assert_allclose(raw_logits(trained, states), wanted, rtol=1e-4, atol=1e-4)
    assert not np.isfinite(state.best.score)
    assert int(state.update) == int(before[1].update)
    for a, b in zip(leaves(state.actor_opt), leaves(before[1].actor_opt), strict=True):
        np.testing.assert_array_equal(a, b)
    env, starts = state.env, np.asarray(setup.market.starts)[: int(setup.market.num_starts)]
    assert set(np.asarray(env.t).tolist()) <= set(starts.tolist())
    assert not np.asarray(env.steps).any()
    reward, _ = trained.train_episode()
    assert np.isfinite(reward)
    assert len(trained.history) == 3


def test_longer_windows_begin_anew_and_stay_in_the_training_split(trained):
    before = trained.engine.state
    trained.engine.take(episode_length=200)
    setup, state = trained.engine.trained()
    assert (setup.episode_length, setup.config.num_rollouts) == (200, 4)
    last = np.asarray(state.env.t) + 200
    assert last.max() < setup.split.train[1]
    assert np.isfinite(state.best.score)  # of the same bars
    assert np.array_equal(leaves(state.networks)[0], leaves(before.networks)[0])
    # half of the plan is done; what is left has twice as many updates
    assert float(trained.engine._hyper(setup, state).num_updates) == 2 * 2 + 2 * 4
    with pytest.raises(UserError, match=r"rollout_length.*a divisor of episode_length 130"):
        trained.train_episode(episode_length=130)
    trained.train_episode()  # as the setting says
    assert trained.episode_lengths == [100, 100, 100]


def fake_train(state, count, market, params, hyper, segments, config):
    """Do as if the program had run."""
    metrics = {name: jnp.ones((100, 3)) for name in ("reward", "actor_loss", "critic_loss")}
    metrics |= {"terms": {"equity": jnp.ones(100)}, "selection_score": jnp.full(100, jnp.nan)}
    return state.replace(iteration=state.iteration + count), metrics


def test_episode_length_of_one_call_counts(trained, monkeypatch):
    """The program itself is replaced: each length is another one."""
    monkeypatch.setattr(learner, "train", fake_train)
    assert trained.train_episode(episode_length=200).steps == 1_600
    assert trained.train_episode().steps == 800
    assert trained.episode_lengths == [100, 100, 200, 100]
    assert trained.get_training_stats()["total_steps"] == 800 * 2 + 1_600 + 800


def test_short_data_shorten_windows_and_say_so_once(df, capsys):
    trainer = tiny(episode_length=6_000)
    for _ in range(2):
        trainer.set_data(df)
    said = capsys.readouterr().err
    assert said.count("shorter than episode_length 6000: windows have") == 1
    assert trainer.engine.setup.episode_length < 6_000


def test_train_plans_the_learning_rates_and_equals_single_episodes(df, capsys):
    one, two = tiny(), tiny()
    history = one.train(4, data=df)
    for _ in range(4):
        two.train_episode(data=df)
    assert_same(one.engine, two.engine)
    assert history is one.history
    assert [row["iteration"] for row in history] == [1, 2, 3, 4]
    assert "iteration" not in capsys.readouterr().err  # no terminal, no progress
    with pytest.warns(
        UserWarning, match=r"The 4 planned episodes are done.*nothing more is learnt"
    ):
        two.train_episode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two.train_episode()  # said once
    frozen = leaves(two.engine.state.networks.actor)
    for a, b in zip(leaves(one.engine.state.networks.actor), frozen, strict=True):
        np.testing.assert_array_equal(a, b)  # rates of 0
    one.train(2)
    assert one.engine.planned == 6
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(leaves(one.engine.state.networks.actor), frozen, strict=True)
    )
    with pytest.raises(UserError, match="num_episodes is 0"):
        one.train(0)


def test_progress_shows_in_notebooks(df, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", type(sys)("ipykernel"))
    tiny().train(2, data=df)
    assert "2/2" in capsys.readouterr().err


def test_start_idx_is_said_not_to_be_used(trained):
    with pytest.warns(UserWarning, match=r"start_idx is not used.*data=df\[start_idx:\]"):
        trained.train_episode(start_idx=500)


def test_numbers_that_are_not_finite_are_named_and_the_state_is_kept(trained, monkeypatch):
    engine = trained.engine
    held = leaves(engine.state)
    run = type(engine)._run

    def spoiled(self, setup, state, count):
        kernel = state.networks.actor["params"]["Dense_1"]["bias"]
        actor = jax.tree.map(lambda x: x * jnp.nan if x is kernel else x, state.networks.actor)
        return run(self, setup, state.replace(networks=state.networks.replace(actor=actor)), count)

    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "_run", spoiled)
        with pytest.raises(
            NotFiniteError,
            match=r"Iteration 3: .* is nan; .* of iteration 2, is the one that the trainer goes on",
        ):
            trained.train_episode()
    assert len(trained.history) == 2
    for a, b in zip(leaves(engine.state), held, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(trained.train_episode().reward)


@pytest.mark.parametrize("call", [lambda x: x.train_episode(), lambda x: x.train(5)])
def test_ctrl_c_ends_after_the_launch_and_keeps_it(trained, monkeypatch, call):
    engine, run = trained.engine, type(trained.engine)._run

    def interrupted(self, setup, state, count):
        os.kill(os.getpid(), signal.SIGINT)
        return run(self, setup, state, count)

    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(trained)
    assert (trained.engine.episodes, len(trained.history)) == (3, 3)
    trained.train_episode()


# sample calls


def test_sample_grid_search_and_agent_analysis(df, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best_performance, saved = 0, []
    monkeypatch.setattr(files, "save_checkpoint", lambda _, path, __: saved.append(path.name))
    for lr in (1e-4, 1e-3):
        for bs in (8,):
            trainer = tiny(lr_actor=lr, batch_size=bs)
            performance = trainer.train_episode(data=df)
            if performance > best_performance:
                best_performance = performance
                trainer.save_checkpoint(f"best_lr{lr}_bs{bs}.pth")
            assert performance[0] == performance.reward
    assert saved == ["best_lr0.0001_bs8.pth"]  # the same seed and first window: no better
    for i, agent_name in enumerate(["tactical", "risk", "execution"]):
        agent_rewards = trainer.get_agent_rewards(agent_idx=i)
        assert agent_rewards.shape == (1,)
        assert np.mean(agent_rewards) == trainer.history[0]["reward"][agent_name]
    with pytest.raises(UserError, match="agent_idx is 3, expected 0 to 2: tactical"):
        trainer.get_agent_rewards(agent_idx=3)


def test_episodes_compare_with_numbers_and_with_each_other():
    low, high = learnt.Episode(-1.0, 10), learnt.Episode(2.0, 5)
    assert low < 0 < high
    assert high >= 2.0 >= high
    assert low <= -1
    assert high > low
    assert max(low, high) == high == (2.0, 5)


def test_statistics_and_lists(ready):
    fresh = tiny().get_training_stats()
    assert (fresh["episodes"], fresh["total_steps"]) == (0, 0)
    assert np.isnan([fresh["best_reward"], fresh["avg_reward_100"], fresh["actor_loss"]]).all()
    found = ready.training_stats
    assert found == ready.get_training_stats() or np.isnan(found["best_validation_sharpe"])
    assert found["episodes"] == 2
    assert found["total_steps"] == 1_600
    assert found["best_reward"] == max(ready.episode_rewards)
    assert found["avg_reward_100"] == pytest.approx(np.mean(ready.episode_rewards))
    assert found["best_episode"] == 2
    assert found["env_steps_per_second"] > 0
    row = ready.history[-1]
    assert ready.critic_losses[-1] == pytest.approx(np.mean([*row["critic_loss"].values()]))
    assert found["actor_loss"] == ready.actor_losses[-1]


def test_plots_are_drawn_saved_and_shown(ready, tmp_path, monkeypatch):
    shown = []
    display = type(sys)("IPython.display")
    display.display, display.Image = shown.append, lambda png: png
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    shell = type(sys)("IPython")
    shell.version_info = (9, 0)  # Matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have it
    figure = ready.plot_training_progress(save_path=tmp_path / "progress.png")
    assert figure.axes[0].lines
    assert not shown
    monkeypatch.setitem(sys.modules, "ipykernel", type(sys)("ipykernel"))
    assert ready.plot_agent_coordination(tmp_path / "team.png").get_suptitle()
    assert shown[0].startswith(b"\x89PNG")
    assert all((tmp_path / x).stat().st_size > 5_000 for x in ("progress.png", "team.png"))
    with pytest.raises(UserError, match="Nothing was trained yet"):
        tiny().plot_agent_coordination()


# acting


def test_actions_are_those_of_the_networks(ready):
    states = states_around(ready)
    batch = np.repeat(states[:, None], 3, axis=1)
    batch[..., -1] = np.random.default_rng(1).uniform(-1, 1, (len(states), 3))
    nets, scaler = ready.engine.networks()
    wanted = np.stack(
        [teams.reference(nets.actor, i, batch[:, i], scaler) for i in range(3)], axis=1
    )
    actions, log_probs, values = ready.get_action(batch, deterministic=True)
    assert actions.shape == log_probs.shape == values.shape == (30, 3)
    np.testing.assert_array_equal(actions, wanted.argmax(-1))
    every = wanted - np.log(np.exp(wanted).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, every.max(-1), rtol=1e-4, atol=1e-5)

    # the critic: features, p = D − (D − p), no drawdown, the whole window, role values
    roles = batch[..., -1]
    book = np.stack([roles[:, 0] - roles[:, 2], np.zeros(30), np.ones(30)], axis=1)
    seen = np.column_stack([batch[:, 0, :-1], book, roles])
    normal = teams.reference(nets.critic, 0, seen, scaler)
    mean, deviation = learner.value_norm.moments(nets.value_norm)
    np.testing.assert_allclose(
        values, normal * np.asarray(deviation) + np.asarray(mean), rtol=1e-3, atol=1e-3
    )

    one = ready.get_action(list(batch[0]), deterministic=True)  # a list of 3 states
    for a, b in zip(one, (actions, log_probs, values), strict=True):
        assert a.shape == (3,)
        np.testing.assert_allclose(a, b[0], rtol=1e-5)
    alone = ready.get_action(batch[0, 1], agent_idx=1, deterministic=True)
    assert (alone[0].shape, int(alone[0])) == ((), actions[0, 1])
    several = ready.get_action(batch[:5, 2], agent_idx=2, deterministic=True)
    np.testing.assert_array_equal(several[0], actions[:5, 2])


def test_drawn_actions_follow_their_probabilities_and_leave_training_alone(ready):
    state = np.repeat(states_around(ready, 1), 3, axis=0)
    key = np.asarray(jax.random.key_data(ready.engine.state.key))
    actions, log_probs, _ = ready.get_action(np.tile(state, (4_096, 1, 1)))
    logits = raw_logits(ready, state)[:, 0]
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for agent in range(3):
        found = np.bincount(actions[:, agent], minlength=5) / 4_096
        np.testing.assert_allclose(found, share[agent], atol=0.04)
        np.testing.assert_allclose(
            np.exp(log_probs[:, agent]), share[agent][actions[:, agent]], rtol=1e-3
        )
    again, _, _ = ready.get_action(np.tile(state, (4_096, 1, 1)))
    assert (again != actions).any()
    np.testing.assert_array_equal(np.asarray(jax.random.key_data(ready.engine.state.key)), key)


@pytest.mark.parametrize(
    ("states", "agent", "said"),
    [
        (np.zeros((3, 6)), None, r"shape \[3, 6\], expected \[3, 7\] or \[B, 3, 7\]"),
        (np.zeros((2, 2, 3, 7)), None, "expected"),
        ([[1.0], [1.0, 2.0]], None, r"expected \[3, 7\]"),
        (np.zeros((3, 7)), 5, "agent_idx is 5, expected 0 to 2"),
        (np.zeros(3), 0, r"expected \[7\] or \[B, 7\]: 6 raw features and the role value\."),
        (np.full((3, 7), np.nan), None, "The states hold NaN"),
    ],
)
def test_states_of_another_shape_are_refused(ready, states, agent, said):
    with pytest.raises(UserError, match=said):
        ready.get_action(states, agent_idx=agent)


def test_acting_needs_networks():
    with pytest.raises(UserError, match="There are no networks yet: train_episode"):
        tiny().get_action(np.zeros((3, 7)))


# files


@needs_torch
def test_checkpoints_give_inference_without_data_and_a_warm_start_with(ready, tmp_path, capsys):
    path = tmp_path / "models" / "best_tactical_model.pth"
    ready.save_checkpoint(path)
    states = np.repeat(states_around(ready, 8)[:, None], 3, axis=1)
    best = learner.chosen(ready.engine.state)

    trainer = gm_jax.TacticalMAPPOTrainer()
    trainer.load_checkpoint(path)
    said = capsys.readouterr().err
    assert "best_tactical_model.pth: inference" in said
    assert "settings taken from it: hidden_sizes=(16, 16)" in said
    wanted = np.stack(
        [teams.reference(best.actor, i, states[:, i], ready.engine.setup.scaler) for i in (0, 1)]
    )
    actions, _, _ = trainer.get_action(states, deterministic=True)
    np.testing.assert_array_equal(actions[:, :2].T, wanted.argmax(-1))
    trainer.save_checkpoint(tmp_path / "again.pth")
    assert gm_jax.TacticalMAPPOTrainer().load_checkpoint(tmp_path / "again.pth") is None

    warm = tiny()
    warm.set_data(frame(6_000, seed=1))
    warm.load_checkpoint(path)
    assert "a warm start: networks from the file, fresh optimisers" in capsys.readouterr().err
    assert (warm.engine.episodes, warm.history) == (0, [])
    assert not leaves(warm.engine.state.actor_opt)[0].any()
    for a, b in zip(warm.get_action(states, deterministic=True)[:2], (actions,), strict=False):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(warm.train_episode().reward)
    assert warm.engine.episodes == 1
    warm.save_checkpoint(tmp_path / "warm.pth")


@needs_torch
def test_checkpoints_that_cannot_be_used_are_refused(ready, tmp_path):
    ready.save_checkpoint(tmp_path / "best.pth")
    with pytest.raises(UserError, match="holds a tactical team"):
        gm_jax.StrategicMAPPOTrainer().load_checkpoint(tmp_path / "best.pth")
    with pytest.raises(UserError, match=r"There is no file and no run directory .*none\.pth"):
        tiny().load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is no run directory"):
        tiny().load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="There are no networks yet"):
        tiny().save_checkpoint(tmp_path / "none.pth")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write .*file"):
        ready.save_checkpoint(tmp_path / "file" / "best.pth")


def test_without_torch_checkpoints_say_what_is_missing(ready, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "available", lambda: False)
    (tmp_path / "best.pth").touch()
    for call in (ready.save_checkpoint, ready.load_checkpoint):
        with pytest.raises(UserError, match=r"PyTorch is not installed.*pip install torch"):
            call(tmp_path / "best.pth")


@pytest.fixture
def unreported(monkeypatch):
    """Leave the evaluation out of what is saved."""
    monkeypatch.setattr(training, "finish", lambda run, began: {"run_dir": str(run.directory.path)})


def test_a_saved_run_goes_on_bit_for_bit_here_and_on_the_command_line(other, tmp_path, unreported):
    whole, half = tiny(), tiny()
    for _ in range(4):
        whole.train_episode(data=other)
    for _ in range(2):
        half.train_episode(data=other)
    half.save_run(tmp_path / "run")

    taken_up = gm_jax.TacticalMAPPOTrainer()  # its settings are the run's
    taken_up.load_checkpoint(tmp_path / "run")
    assert taken_up.settings == half.settings
    assert taken_up.engine.episodes == 2
    taken_up.train_episode()
    taken_up.train_episode(data=other)  # the frame holds the run's own bars
    assert_same(taken_up.engine, whole.engine)

    os.rename(tmp_path / "run", tmp_path / "moved")
    run = training.resume(tmp_path / "moved", TACTICAL)
    training.train(run)
    run.history = run.directory.history()
    assert_same(run, whole.engine)
    with pytest.raises(
        UserError, match=r"is a run of the tactical system; load it into gm_jax.Tac"
    ):
        gm_jax.StrategicMAPPOTrainer().load_checkpoint(tmp_path / "moved")


@needs_torch
def test_export_models_writes_a_run_that_the_command_line_takes(trained, tmp_path, capsys):
    out = tmp_path / "exports" / "tactical_training"
    summary = gm_jax.export_models(trained, save_dir=out)
    assert (summary["run_dir"], summary["env_steps"]) == (str(out), 1_600)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {
        *("bars.csv", "model_config.json", "metrics.jsonl", "validation_results.json"),
        *("training_statistics.json", "plots/learning_curve.png", "plots/coordination_test.png"),
        *("best_tactical_model.pth", "final_tactical_model.pth", "risk_actor.pth"),
        *("tactical_critic.pth", "deploy_model.py", "README.md", "manifest.json"),
    } <= names
    assert not [name for name in names if name.endswith(".part")]
    assert len(RunDirectory.open(out).history()) == 2
    assert json.loads((out / "training_statistics.json").read_text())["best_iteration"] == 2
    assert (tmp_path / "exports" / "trials.jsonl").read_text().count("tactical_training") == 1

    capsys.readouterr()
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = json.loads((out / "validation_results.json").read_text())["splits"]["test"]
    assert report["net_pnl"] == stored["net_pnl"]
    assert report["agent_contributions"] == stored["agent_contributions"]

    again = gm_jax.TacticalMAPPOTrainer()
    again.load_checkpoint(out / "best_tactical_model.pth")
    assert again.get_action(np.zeros((3, 7)), deterministic=True)[0].shape == (3,)


def test_an_earlier_export_is_replaced_and_nothing_else(trained, df, tmp_path, unreported, capsys):
    out = tmp_path / "run"
    trained.save_run(out)
    (out / "note.txt").write_text("of the first")
    trained.train_episode()
    trained.save_run(out)
    trained.save_run(out)  # without any training in between
    assert not (out / "note.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert len(RunDirectory.open(out).history()) == 3
    assert RunDirectory.open(out).config()["settings"]["num_episodes"] == 4

    taken_up = tiny()
    taken_up.load_checkpoint(out)
    taken_up.save_run(out)  # who takes a run up goes on with it
    tiny().load_checkpoint(out)  # its bars are still there
    elsewhere = tiny()
    elsewhere.set_data(df)
    elsewhere.save_run(out)  # a script that is run again
    assert "was of another trainer" in capsys.readouterr().err
    again = tiny()
    again.load_checkpoint(tmp_path / "run-1")  # nothing of the first is lost
    assert len(again.history) == 3
    shutil.rmtree(tmp_path / "run-1")
    again.engine.planned = 7  # copies of a null test learn by the same plan
    setup = files.save_progress(again.engine, tmp_path / "planned")
    assert setup.hyper.num_updates == 7 * setup.config.num_rollouts
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty, and what is in it is no earlier export"):
        trained.save_run(tmp_path / "other")
    with pytest.raises(UserError, match="is not empty"):
        trained.save_run(tmp_path / "other" / "thesis.tex")
    holder = RunDirectory(out)
    holder.lock()
    with pytest.raises(UserError, match="is in use by another run"):
        trained.save_run(out)
    holder.release()
    with pytest.raises(UserError, match="Nothing was trained yet"):
        tiny().save_run(tmp_path / "new")


def test_an_export_that_fails_leaves_the_one_before(trained, tmp_path, unreported, monkeypatch):
    out = tmp_path / "run"
    trained.save_run(out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    trained.train_episode()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "model_config", fail)
        with pytest.raises(UserError, match="No space left on device"):
            trained.save_run(out)
    for path, written in before.items():
        assert path.read_bytes() == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    # killed between the two renames, the old one lies beside
    os.rename(out, tmp_path / f".run.old{files.PART}")
    trained.save_run(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_training_that_was_cut_off_is_found_and_goes_on(df, tmp_path, unreported, capsys):
    runs = tmp_path / "runs"
    assert gm_jax.TacticalMAPPOTrainer.unfinished_run(runs) is None  # no such folder
    whole, cut = tiny(), tiny()
    for _ in range(4):
        whole.train_episode(data=df)
    for name in ("early", "late", "late"):
        cut.train_episode(data=df)
        cut.save_progress(runs / name)
    assert not (runs / "late" / "validation_results.json").exists()
    assert not list(runs.glob("**/*.pth"))
    assert gm_jax.StrategicMAPPOTrainer.unfinished_run(runs) is None
    os.rename(runs / "late", runs / f".late.old{files.PART}")  # cut off while it was saved
    found = gm_jax.TacticalMAPPOTrainer.unfinished_run(runs)
    assert found == runs / "late"

    taken_up = gm_jax.TacticalMAPPOTrainer()
    taken_up.load_checkpoint(found)
    assert len(taken_up.history) == 3
    taken_up.train_episode()
    assert_same(taken_up.engine, whole.engine)

    def reported(name, iterations):
        (runs / name / "validation_results.json").write_text(json.dumps({"iterations": iterations}))

    reported("late", 3)  # a look at it half-way
    assert gm_jax.TacticalMAPPOTrainer.unfinished_run(runs) == found
    reported("late", 4)
    assert gm_jax.TacticalMAPPOTrainer.unfinished_run(runs) == runs / "early"
    config = runs / "early" / "model_config.json"
    config.write_text(config.read_text().replace('"trainer"', '"by_hand"'))
    assert gm_jax.TacticalMAPPOTrainer.unfinished_run(runs) is None
    capsys.readouterr()
    config.write_text("{")
    assert gm_jax.TacticalMAPPOTrainer.unfinished_run(runs) is None
    assert "early is left out" in capsys.readouterr().err


def test_frames_of_every_kind_survive_in_a_run_directory(df, tmp_path):
    stamps = pd.to_datetime(df["Date"])
    values = df.drop(columns="Date")
    aware = pd.DatetimeIndex(stamps).tz_localize("America/New_York", ambiguous="NaT")
    kinds = {
        "index": values.set_index(pd.DatetimeIndex(stamps)),
        "aware": values.assign(Date=aware),
        "odd": df.assign(note='a, "b"', Volume=df["Volume"].astype(float)).iloc[:, ::-1],
        "cut": df.iloc[1_000:].drop(index=range(3_000, 3_010)),
    }
    for name, mine in kinds.items():
        trainer = tiny()
        trainer.set_data(mine)
        setup, _ = trainer.engine.trained()
        files._write_frame(trainer.engine.dataset, tmp_path / f"{name}.csv", setup)
        source = replace(trainer.engine.dataset.source, data=str(tmp_path / f"{name}.csv"))
        again = prepare(TACTICAL, setup.settings, load(source, setup.settings, 5))
        assert again.scaler.equals(setup.scaler)


def test_the_strategic_trainer_has_its_own_sizes_and_role_values():
    """Its program is compiled by its own tests; here are its data and its networks."""
    trainer = gm_jax.StrategicMAPPOTrainer(**TINY, layer_norm=1, market_bars=6_000)
    engine = trainer.engine
    dataset = engine.shelf.dataset("planted", trainer.settings, {})
    setup = engine.shelf.setup(dataset.loaded, trainer.settings)
    assert len(setup.market.bars) == BARS
    assert setup.market.signals.shape[1] == 3

    run = teams.trained("strategic", hidden_sizes=(16, 16), layer_norm=1)
    engine.begin(trainer.settings, (run.state.networks, run.scaler))
    rng = np.random.default_rng(3)
    states = np.repeat((run.scaler.mean + run.scaler.scale * rng.standard_normal(12))[None], 3, 0)
    states = np.column_stack([states, [0.4, 0.5, 0.2]]).astype(np.float32)
    actions, _, values = trainer.get_action(states, deterministic=True)
    nets = run.state.networks
    logits = [teams.reference(nets.actor, i, states[[i]], run.scaler)[0] for i in range(3)]
    assert actions.tolist() == np.argmax(logits, 1).tolist()
    seen = np.concatenate([states[0, :-1], [0.4, 0, 1], [0.4, 0.5, 0.2]])  # it holds its D
    normal = teams.reference(nets.critic, 0, seen[None], run.scaler)[0]
    mean, deviation = map(np.asarray, learner.value_norm.moments(nets.value_norm))
    np.testing.assert_allclose(values, normal * deviation + mean, rtol=1e-4)

    # of one agent alone: the others' controls are fresh, no position, a tenth, NORMAL
    value = trainer.get_action(states[1], agent_idx=1, deterministic=True)[2]
    seen = np.concatenate([states[0, :-1], [0, 0, 1], [0, 0.5, 0]])
    normal = teams.reference(nets.critic, 0, seen[None], run.scaler)[0]
    np.testing.assert_allclose(value, (normal * deviation + mean)[1], rtol=1e-4)
