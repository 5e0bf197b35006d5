"""The `.pth` files, read by PyTorch alone, and networks that answer as Flax does."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
import pytest


torch = pytest.importorskip("torch", reason="the exporter needs PyTorch")

from gm_jax.deploy.networks import Actors, Network, positions  # noqa: E402
from gm_jax.env import core, tactical  # noqa: E402
from gm_jax.env.team import start  # noqa: E402
from gm_jax.errors import UserError  # noqa: E402
from gm_jax.export import agents, checkpoints, weights  # noqa: E402
from gm_jax.export.weights import Scaler  # noqa: E402
from gm_jax.mappo import learner, networks, value_norm  # noqa: E402
from tests.env.worlds import params_of, random_market  # noqa: E402
from tests.export import teams  # noqa: E402
from tests.export.test_weights import SHAPES, shape_name  # noqa: E402


SMALL = {"hidden_sizes": (8, 8, 8)}
NINE = {
    *("training_stats", "episode_rewards", "episode_lengths", "actor_losses", "critic_losses"),
    *("actors", "critics", "actor_optimizers", "critic_optimizers"),
}


@lru_cache
def files(layout: str, system: str = "tactical", **changes: object) -> dict[str, bytes]:
    return checkpoints.files(layout, teams.trained(system, **(SMALL | changes)))


def load(content: bytes):
    return torch.load(io.BytesIO(content), weights_only=True)


def flax_logits(run, nets, agent: int, raw: np.ndarray) -> np.ndarray:
    """Return an actor's logits from raw inputs, scaled here."""
    obs = raw.copy()
    count = len(run.scaler.mean)
    obs[:, :count] = (raw[:, :count] - run.scaler.mean) / run.scaler.scale
    obs = jnp.asarray(np.repeat(obs[:, None], teams.AGENTS, axis=1))
    mask = jnp.ones((*obs.shape[:2], len(run.config.system.actions)), bool)
    return np.asarray(networks.masked_logits(run.config, nets.actor, obs, mask))[:, agent]


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
@pytest.mark.parametrize("critic", ["central", "local"])
def test_torch_answers_as_flax(critic, shape):
    run = teams.trained("strategic", critic=critic, **shape)
    for network in agents.team(run, run.state.networks):
        found = checkpoints.torch_outputs(network)
        wanted = network.probe_outputs
        assert found.dtype == wanted.dtype == np.float32
        bound = 1e-5 * np.maximum(network.unit, np.abs(wanted))
        assert (np.abs(found - wanted) <= bound).all()
        assert wanted.std(axis=0).min() > 0.05 * network.unit  # they say something


@pytest.mark.parametrize("system", ["tactical", "strategic"])
def test_full_size_answers_as_flax_even_where_tails_are_heavy(system, monkeypatch):
    monkeypatch.setattr(agents, "BARS", 500)
    run = teams.trained(system)
    far = np.abs((run.raw_features - run.scaler.mean) / run.scaler.scale).max()
    assert far > 8
    team = agents.team(run, run.state.networks)
    for network in team:
        network.require_agreement(checkpoints.torch_outputs(network), "PyTorch")
    # the team's actors, one decision at a time, each with another role value
    modules = [checkpoints.torch_network(network) for network in team[:3]]
    actors, rng = Actors(modules), np.random.default_rng(1)
    for row in team[0].probe_inputs[::10]:
        x = np.stack([row] * 3)
        x[:, -1] = rng.uniform(-1, 1, 3)
        found = actors.logits(x)
        with torch.inference_mode():
            wanted = np.stack(
                [net(torch.tensor(y)).numpy() for net, y in zip(modules, x, strict=True)]
            )
        assert (found.dtype, found.shape) == (np.float32, wanted.shape)
        assert (np.abs(found - wanted) <= 1e-5 * np.maximum(1, np.abs(wanted))).all()


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
def test_stacked_actors_are_the_networks(shape):
    torch.manual_seed(0)
    team = [Network(5, shape["hidden_sizes"], shape["layer_norm"], 4) for _ in range(3)]
    for network in team:
        for parameter in network.parameters():  # LayerNorm begins as ones and zeros
            torch.nn.init.normal_(parameter, std=0.5)
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    with torch.inference_mode():
        wanted = [network(torch.tensor(row)).numpy() for network, row in zip(team, x, strict=True)]
    np.testing.assert_allclose(Actors(team).logits(x), np.array(wanted), rtol=1e-5, atol=1e-5)


def test_network_has_the_modules_of_grandmodel():
    def kinds(*shape):
        return " ".join(type(module).__name__ for module in Network(*shape).net)

    assert kinds(7, (4, 4, 4), 0, 5) == (
        "Linear ReLU Dropout Linear ReLU Dropout Linear ReLU Linear"
    )
    assert kinds(13, (4, 4, 4), 2, 7) == (
        "Linear ReLU LayerNorm Dropout Linear ReLU LayerNorm Dropout Linear ReLU Linear"
    )
    for hidden in range(1, 6):
        for layer_norm in range(hidden + 1):
            net = Network(3, [4] * hidden, layer_norm, 2).net
            linear = [i for i, module in enumerate(net) if isinstance(module, torch.nn.Linear)]
            norm = [i for i, module in enumerate(net) if isinstance(module, torch.nn.LayerNorm)]
            assert positions(hidden, layer_norm) == (linear, norm)


def test_flax_gives_the_probes():
    """The stored outputs are those of `mappo.networks`, whatever torch makes of the inputs."""
    run = teams.trained("tactical", **SMALL)
    nets = learner.chosen(run.state)
    for agent, name in enumerate(run.config.system.agents):
        content = load(files("gm")[f"{name}_actor.pth"])
        raw = content["probe_inputs"].numpy()
        wanted = flax_logits(run, nets, agent, raw)
        np.testing.assert_allclose(content["probe_outputs"], wanted, rtol=1e-6, atol=1e-6)
        content = load(files("gm")[f"{name}_critic.pth"])
        raw = content["probe_inputs"].numpy()
        normal = teams.reference(nets.critic, 0, raw, run.scaler)
        values = value_norm.denormalise(nets.value_norm, jnp.float32(normal))[:, agent]
        np.testing.assert_allclose(content["probe_outputs"][:, 0], values, rtol=1e-5, atol=1e-3)


def test_inputs_are_what_the_environment_shows_but_for_the_scaler():
    run = teams.trained("tactical", **SMALL)
    world, params = random_market(0), params_of(run.settings, episode_length=100)
    world = world.replace(
        features=world.features.at[7].set(run.raw_features[7]),  # a bar the networks know
        mean=jnp.float32(run.scaler.mean),
        scale=jnp.float32(run.scaler.scale),
    )
    state = start(jnp.int32(7), params, tactical)
    state = state.replace(
        steps=jnp.int32(25),
        position=jnp.int32(2),
        peak=jnp.int32(10_000_000),
        equity=jnp.int32(9_000_000),
        controls=tactical.Controls(jnp.int32(3), jnp.int32(5)),
    )
    seen = core.observe(state, world, params, tactical)
    names = agents.input_names(run.config, run.settings.features)
    shown = dict(zip(names["critic"], np.asarray(seen.global_obs).tolist(), strict=True))
    account = {"position": 2 / 6, "drawdown": 0.1, "time_left": 0.75}
    roles = {"role_value_tactical": 3 / 6, "role_value_risk": 5 / 6, "role_value_execution": 1 / 6}
    assert {name: shown[name] for name in account | roles} == pytest.approx(account | roles)
    assert len(shown) == 6 + len(account | roles)

    nets, raw = run.state.networks, np.asarray(world.features[7])
    values = networks.values(run.config, nets.critic, seen.global_obs)
    values = value_norm.denormalise(nets.value_norm, values)
    logits = networks.masked_logits(run.config, nets.actor, seen.obs, jnp.ones((3, 5), bool))
    for number, network in enumerate(agents.team(run, nets)):
        agent, acts = number % 3, network.kind == "actor"
        rest = [shown[name] for name in account | roles]
        x = [*raw, *([rest[3 + agent]] if acts else rest)]
        with torch.inference_mode():
            found = checkpoints.torch_network(network)(torch.tensor(np.float32(x)))
        wanted = logits[agent] if acts else values[agent : agent + 1]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * network.unit)


def test_probes_hold_bars_and_strangers():
    run = teams.trained("tactical", **SMALL)
    own, everything = agents.probes(run.scaler, run.raw_features, teams.AGENTS)
    bars = run.raw_features.astype(np.float32)
    count = bars.shape[1]
    assert [(row == bars).all(1).any() for row in own[:, :count]] == [True] * 48 + [False] * 16
    assert len(np.unique(own[:48, 0])) == 48  # spread over the bars
    np.testing.assert_array_equal(own[:, :count], everything[:, :count])
    assert own[:, -1].min() < -0.9 and own[:, -1].max() > 0.9
    assert everything[:, count + 1 : count + 3].min() >= 0
    one = agents.probes(run.scaler, run.raw_features[:1], teams.AGENTS)[0]
    assert (one[:48, :count] == bars[0]).all()


def test_layout_gm_says_what_a_network_takes_and_gives():
    run = teams.trained("tactical", **SMALL)
    team = run.config.system.agents
    assert set(files("gm")) == {
        *("best_tactical_model.pth", "final_tactical_model.pth"),
        *(f"{agent}_{kind}.pth" for agent in team for kind in ("actor", "critic")),
    }
    best, final = (load(files("gm")[f"{x}_tactical_model.pth"]) for x in ("best", "final"))
    assert set(best) == set(final) == {"schema", "system", "actors", "critics"}
    for kind in ("actor", "critic"):
        assert [x["agent"] for x in best[f"{kind}s"]] == [*team]
        for content in best[f"{kind}s"]:
            own = load(files("gm")[f"{content['agent']}_{kind}.pth"])
            assert own.keys() == content.keys()
            assert own["config"] == content["config"]
            for name, x in own["state_dict"].items():
                assert torch.equal(x, content["state_dict"][name])
    first = best["actors"][0]
    assert {*first} == {
        *("schema", "system", "agent", "state_dict", "scaler"),
        *("probe_inputs", "probe_outputs", "config"),
    }
    assert (first["schema"], first["system"], first["agent"]) == (1, "tactical", "tactical")
    assert first["scaler"]["mean"] == [float(x) for x in run.scaler.mean]
    assert first["scaler"]["scale"] == [float(x) for x in run.scaler.scale]
    assert first["config"] == {
        "kind": "actor",
        "inputs": [*run.settings.features, "role_value"],
        "hidden_sizes": [8, 8, 8],
        "layer_norm": 0,
        "outputs": ["HOLD", "BUY_SMALL", "BUY_LARGE", "SELL_SMALL", "SELL_LARGE"],
        "eps": 1e-5,
        "unit": 1.0,
    }
    config = best["critics"][2]["config"]
    assert config["outputs"] == ["value in bp"]
    assert config["inputs"] == [
        *run.settings.features,
        *("position", "drawdown", "time_left"),
        *("role_value_tactical", "role_value_risk", "role_value_execution"),
    ]
    local = load(files("gm", critic="local")["risk_critic.pth"])["config"]
    assert local["inputs"] == first["config"]["inputs"]
    assert not torch.equal(
        first["state_dict"]["net.0.weight"], final["actors"][0]["state_dict"]["net.0.weight"]
    )


def test_best_are_the_newest_before_anything_was_validated():
    run = teams.trained("tactical", **SMALL)
    none = run.state.best.replace(score=jnp.float32(-jnp.inf), iteration=jnp.int32(0))
    run = replace(run, state=run.state.replace(best=none))
    gm = checkpoints.files("gm", run)
    best, final = (load(gm[f"{x}_tactical_model.pth"])["actors"] for x in ("best", "final"))
    for a, b in zip(best, final, strict=True):
        assert torch.equal(a["state_dict"]["net.8.weight"], b["state_dict"]["net.8.weight"])
    models = checkpoints.files("grandmodel", run)
    stats = load(models["best_tactical_model.pth"])["training_stats"]
    assert stats["networks_of_episode"] == teams.ITERATIONS


def test_layout_grandmodel_keeps_the_record():
    model = load(files("grandmodel")["best_tactical_model.pth"])
    assert set(model) == NINE
    done = teams.ITERATIONS  # the history has one row more: the run was killed before it saved
    assert model["episode_rewards"] == [5.0 * i for i in range(1, done + 1)]
    assert model["episode_lengths"] == [1000] * done
    assert model["actor_losses"] == pytest.approx([-0.1] * done)
    assert model["critic_losses"] == [3.0] * done
    assert model["training_stats"] == {
        "episodes": done,
        "total_steps": 64_000 * done,
        "best_reward": 5.0 * done,
        "avg_reward_100": pytest.approx(17.5),
        "windows_per_episode": 64,
        "networks_of_episode": teams.BEST,
    }
    final = load(files("grandmodel")["final_tactical_model.pth"])
    assert final["training_stats"]["networks_of_episode"] == done


def test_average_reward_is_of_the_last_hundred():
    run = teams.trained("tactical", **SMALL)
    row = run.history[0]
    rows = [
        row | {"iteration": i, "reward": dict.fromkeys(row["reward"], float(i))}
        for i in range(1, 151)
    ]
    run = replace(run, history=rows, state=run.state.replace(iteration=jnp.int32(150)))
    stats = checkpoints.record(run)["training_stats"]
    assert stats["avg_reward_100"] == np.mean(range(51, 151))


def test_run_without_history_has_no_rewards():
    run = replace(teams.trained("tactical", **SMALL), history=())
    record = checkpoints.record(run)
    assert record["episode_rewards"] == record["actor_losses"] == []
    assert record["training_stats"]["total_steps"] == 0
    assert math.isnan(record["training_stats"]["best_reward"])


def test_probes_of_layout_grandmodel_stand_beside_it():
    found = files("grandmodel")
    assert set(found) == {*files("gm"), "probes.json"}
    models = json.loads(found["probes.json"])["models"]
    assert [*models] == ["best_tactical_model.pth", "final_tactical_model.pth"]
    for model, probes in models.items():
        wanted = load(files("gm")[model])
        for kind in ("actors", "critics"):
            states = load(found[model])[kind]
            for state, a, b in zip(states, probes[kind], wanted[kind], strict=True):
                assert a["agent"] == b["agent"]
                assert (a["config"], a["scaler"]) == (b["config"], b["scaler"])
                for what in ("probe_inputs", "probe_outputs"):
                    stored = torch.tensor(a[what], dtype=torch.float32)
                    assert torch.equal(stored, b[what])  # JSON keeps every bit
                for name, x in b["state_dict"].items():
                    assert torch.equal(x, state[name])


@pytest.mark.parametrize("critic", ["central", "local"])
def test_optimisers_are_adam_of_the_networks(critic):
    run = teams.trained("strategic", critic=critic, **SMALL)
    model = load(files("grandmodel", "strategic", critic=critic)["final_strategic_model.pth"])
    for kind, rate in (("actor", 1e-4), ("critic", 3e-4)):
        team = [x for x in agents.team(run, run.state.networks) if x.kind == kind]
        for number, (network, state) in enumerate(
            zip(team, model[f"{kind}_optimizers"], strict=True)
        ):
            module = checkpoints.torch_network(network)
            optimiser = torch.optim.Adam(module.parameters(), lr=1.0)
            optimiser.load_state_dict(state)
            group = optimiser.param_groups[0]
            assert (group["lr"], group["eps"], group["betas"]) == (rate, 1e-5, (0.9, 0.999))
            moments = (
                weights.actor_moments(run.state.actor_opt, run.scaler, number)
                if kind == "actor"
                else weights.critic_moments(run.state.critic_opt, run.scaler, number, network.unit)
            )
            steps = 100 if (kind, critic) == ("critic", "central") else 100 + 10 * number
            for name, parameter in module.named_parameters():
                own = optimiser.state[parameter]
                assert own["step"] == steps
                assert torch.equal(own["exp_avg"], torch.tensor(moments.exp_avg[name]))
                assert torch.equal(own["exp_avg_sq"], torch.tensor(moments.exp_avg_sq[name]))
                assert own["exp_avg_sq"].min() >= 0
            module(torch.tensor(network.probe_inputs)).sum().backward()
            optimiser.step()
            assert all(torch.isfinite(x).all() for x in module.parameters())


READER = """
import json, pathlib, sys
import torch
from torch.nn import Dropout, LayerNorm, Linear, ReLU, Sequential

def tactical(inputs, outputs):
    return Sequential(Linear(inputs, 256), ReLU(), Dropout(0.1), Linear(256, 256), ReLU(),
        Dropout(0.1), Linear(256, 256), ReLU(), Linear(256, outputs))

def strategic(inputs, outputs):
    return Sequential(Linear(inputs, 512), ReLU(), LayerNorm(512), Dropout(0.2), Linear(512, 512),
        ReLU(), LayerNorm(512), Dropout(0.2), Linear(512, 256), ReLU(), Linear(256, outputs))

class Net(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

folder = pathlib.Path(sys.argv[1])
loaded = {path: torch.load(path, weights_only=True) for path in sorted(folder.rglob("*.pth"))}
assert len(loaded) == 32
answered = 0

def load(build, inputs, outputs, state, rate=None, optimiser=None):
    module = Net(build(inputs, outputs))
    module.load_state_dict(state, strict=True)
    if optimiser:
        adam = torch.optim.Adam(module.parameters(), lr=rate)
        adam.load_state_dict(optimiser)
        assert len(adam.state) == len(list(module.parameters()))
    return module.eval()

def check(module, probe):
    global answered
    wanted = torch.as_tensor(probe["probe_outputs"], dtype=torch.float32)
    with torch.no_grad():
        found = module.net(torch.as_tensor(probe["probe_inputs"], dtype=torch.float32))
    unit = torch.clamp(wanted.abs(), min=probe["config"]["unit"])
    assert found.shape == wanted.shape and ((found - wanted).abs() <= 1e-5 * unit).all()
    answered += 1

for system, build, inputs, actions in (
    ("tactical", tactical, 7, 5), ("strategic", strategic, 13, 7)
):
    gm, old = folder / "gm" / system, folder / "grandmodel" / system
    probes = json.loads((old / "probes.json").read_text())["models"]
    for file in ("best", "final"):
        name = f"{file}_{system}_model.pth"
        for kinds, outputs in (("actors", actions), ("critics", 1)):
            for content in loaded[gm / name][kinds]:
                check(load(build, inputs, outputs, content["state_dict"]), content)
            model, known = loaded[old / name], probes[name][kinds]
            optimisers = model[kinds[:-1] + "_optimizers"]
            for state, optimiser, probe in zip(model[kinds], optimisers, known, strict=True):
                check(load(build, inputs, outputs, state, 1e-3, optimiser), probe)
                if file == "best":
                    own = f"{probe['agent']}_{kinds[:-1]}.pth"
                    check(load(build, inputs, outputs, loaded[old / own]), probe)
                    check(load(build, inputs, outputs, loaded[gm / own]["state_dict"]), probe)
assert answered == 72, answered
assert not any(name.startswith(("gm_jax", "jax", "flax")) for name in sys.modules)
print("read")
"""


def test_grandmodel_reads_every_file_without_gm_jax(tmp_path):
    """A clean process with hand-written modules of the full sizes, loaded strictly."""
    for system in ("tactical", "strategic"):
        run = teams.trained(system, critic="local")
        for layout in checkpoints.LAYOUTS:
            folder = tmp_path / layout / system
            folder.mkdir(parents=True)
            for name, content in checkpoints.files(layout, run).items():
                (folder / name).write_bytes(content)
    command = [sys.executable, "-I", "-W", "error", "-c", READER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


def test_same_input_gives_the_same_bytes(tmp_path):
    """Here, and in another process with another hash seed."""
    script = """
        import hashlib, json
        from gm_jax.export import checkpoints
        from tests.export import teams
        features = tuple(json.loads(json.dumps(teams.SYSTEMS["tactical"].settings.features)))
        run = teams.trained("tactical", hidden_sizes=(8, 8, 8), features=features)
        for layout in checkpoints.LAYOUTS:
            for name, content in checkpoints.files(layout, run).items():
                print(name, hashlib.sha256(content).hexdigest())
    """
    sums = [
        f"{name} {hashlib.sha256(content).hexdigest()}"
        for layout in checkpoints.LAYOUTS
        for name, content in files(layout).items()
    ]
    again = checkpoints.files("gm", teams.trained.__wrapped__("tactical", **SMALL))
    assert again == files("gm")
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.splitlines() == sums, done.stderr


@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_training_in_less_precision_is_exported_in_float32(precision):
    exact, rough = (teams.trained("tactical", precision=x, **SMALL) for x in ("float32", precision))
    assert rough.config.precision == precision
    for a, b in zip(*(agents.team(run, run.state.networks) for run in (exact, rough)), strict=True):
        np.testing.assert_array_equal(a.probe_outputs, b.probe_outputs)
        np.testing.assert_array_equal(a.state_dict["net.0.weight"], b.state_dict["net.0.weight"])


def test_unknown_layout_is_refused():
    with pytest.raises(UserError, match="'torch', expected gm or grandmodel"):
        checkpoints.files("torch", teams.trained("tactical", **SMALL))


def test_features_that_float32_cannot_carry_are_refused_by_name():
    run = teams.trained("tactical", **SMALL)
    mean = run.scaler.mean.copy()
    mean[3] = 20_000 * run.scaler.scale[3]
    raw = run.raw_features - run.scaler.mean + mean
    far = replace(run, scaler=Scaler(mean, run.scaler.scale), raw_features=raw)
    with pytest.raises(UserError, match=r"PyTorch differs.*momentum_5, its mean 2e\+04 times"):
        checkpoints.files("gm", far)


def test_numbers_that_are_not_finite_are_refused():
    run = teams.trained("tactical", **SMALL)
    raw = run.raw_features.copy()
    raw[0, 2] = np.nan
    with pytest.raises(
        UserError, match="inputs of the networks on training bars are not all finite"
    ):
        checkpoints.files("gm", replace(run, raw_features=raw))
    best = learner.chosen(run.state)
    critic = {"params": {**best.critic["params"]}}
    critic["params"]["Dense_0"] = {k: x * np.nan for k, x in critic["params"]["Dense_0"].items()}
    with pytest.raises(UserError, match="values of the networks on training bars"):
        agents.team(run, best.replace(critic=critic))
