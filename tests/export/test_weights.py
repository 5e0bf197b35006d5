"""Folding scaler and returns' unit into networks, against slow and independent sums."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import optax
import pytest


torch = pytest.importorskip("torch", reason="the exporter needs PyTorch")

from gm_jax.deploy.networks import positions  # noqa: E402
from gm_jax.export import weights  # noqa: E402
from gm_jax.export.agents import probes  # noqa: E402
from tests.export import teams  # noqa: E402


SHAPES = [
    {"hidden_sizes": sizes, "layer_norm": norms}
    for sizes, norms in (
        *(((16,), 0), ((8, 8), 0), ((8, 8, 8, 8), 0), ((32,), 1), ((32, 16, 8), 2)),
        *(((32, 32, 32), 3), ((8, 8, 8, 8), 1)),
    )
]


def shape_name(shape: dict) -> str:
    return f"{shape['hidden_sizes']}, {shape['layer_norm']} norms"


def evaluate(state_dict: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return what a state dict of `net` makes of raw inputs, in float64, by its tensors alone."""
    indices = sorted({int(name.split(".")[1]) for name in state_dict})
    for i in indices:
        weight, bias = (state_dict[f"net.{i}.{leaf}"].astype(float) for leaf in ("weight", "bias"))
        if weight.ndim == 2:
            x = x @ weight.T + bias
            if i < indices[-1]:
                x = np.maximum(x, 0)
        else:
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            x = x * weight + bias
    return x


def assert_same(found: np.ndarray, wanted: np.ndarray, unit: float = 1.0) -> None:
    """Require equality but for the parameters' rounding to float32.

    LayerNorm of few units that are almost equal enlarges it in some rows.
    """
    assert found.shape == wanted.shape
    share = np.abs(found - wanted) / np.maximum(unit, np.abs(wanted))
    assert np.quantile(share, 0.9) < 1e-6
    assert share.max() < 1e-5


def test_modules_are_numbered_as_in_grandmodel():
    assert positions(3, 0) == ([0, 3, 6, 8], [])
    assert positions(3, 2) == ([0, 4, 8, 10], [2, 6])
    assert positions(1, 0) == ([0, 2], [])
    assert positions(2, 0) == ([0, 3, 5], [])
    assert positions(4, 0) == ([0, 3, 6, 9, 11], [])
    assert positions(1, 1) == ([0, 4], [2])
    assert positions(3, 3) == ([0, 4, 8, 12], [2, 6, 10])
    assert positions(4, 1) == ([0, 4, 6, 8, 10], [2])


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
@pytest.mark.parametrize("system", ["tactical", "strategic"])
def test_actors_take_raw_features(system, shape):
    run = teams.trained(system, **shape)
    nets, (own, _) = run.state.networks, probes(run.scaler, run.raw_features, teams.AGENTS)
    for agent in range(teams.AGENTS):
        wanted = teams.reference(nets.actor, agent, own, run.scaler)
        found = evaluate(weights.actor(nets, run.scaler, agent), own.astype(float))
        assert_same(found, wanted)
        assert wanted.std(axis=0).min() > 0.1  # it says something
    assert found.shape[1] == len(run.config.system.actions)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
@pytest.mark.parametrize("critic", ["central", "local"])
def test_critics_give_basis_points(critic, shape):
    run = teams.trained("tactical", critic=critic, **shape)
    nets, inputs = run.state.networks, probes(run.scaler, run.raw_features, teams.AGENTS)
    x = inputs[critic == "central"]
    for agent in range(teams.AGENTS):
        copy, row = (0, agent) if critic == "central" else (agent, 0)
        # the returns seen so far are half the estimate: debiased, they are twice what is stored
        mean, square = 2 * nets.value_norm.mean[agent], 2 * nets.value_norm.square[agent]
        deviation = float(square - mean**2) ** 0.5
        normal = teams.reference(nets.critic, copy, x, run.scaler)[:, row]
        found = evaluate(weights.critic(nets, run.scaler, agent), x.astype(float))
        assert_same(found[:, 0], normal * deviation + float(mean), deviation)


def test_returns_not_seen_yet_leave_the_critic_as_it_is():
    run = teams.trained("tactical", **SHAPES[1])
    norm = run.state.networks.value_norm
    nets = run.state.networks.replace(value_norm=norm.replace(weight=norm.weight * 0))
    _, x = probes(run.scaler, run.raw_features, teams.AGENTS)
    wanted = teams.reference(nets.critic, 0, x, run.scaler)[:, 1]
    mean = float(norm.mean[1])  # as `value_norm.moments` has it: not divided by a weight of none
    found = evaluate(weights.critic(nets, run.scaler, 1), x.astype(float))
    assert_same(found[:, 0], wanted + mean)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
def test_state_dicts_are_plain_float32_of_their_own_memory(shape):
    run = teams.trained("strategic", **shape)
    for agent in range(teams.AGENTS):
        made = [
            weights.actor(run.state.networks, run.scaler, agent),
            weights.critic(run.state.networks, run.scaler, agent),
        ]
        adam = weights.actor_moments(run.state.actor_opt, run.scaler, agent)
        made += [adam.exp_avg, adam.exp_avg_sq]
        assert [*made[0]] == [*made[2]] == [*made[3]]
        for tensors in made:
            order = [int(name.split(".")[1]) for name in tensors]
            assert order == sorted(order)
            leaves = [name.split(".")[2] for name in tensors]
            assert leaves == ["weight", "bias"] * (len(tensors) // 2)
            for x in tensors.values():
                assert (x.dtype, x.flags.c_contiguous, x.base) == (np.float32, True, None)


def double_network(params, copy: int, row: int | None = None) -> torch.nn.Sequential:
    """Return a copy of Flax parameters in the scaled coordinates, as torch in float64."""
    layers, modules = params["params"], []
    dense = sum(name.startswith("Dense") for name in layers)
    for n in range(dense):
        kernel, bias = (
            np.asarray(layers[f"Dense_{n}"][x][copy], float) for x in ("kernel", "bias")
        )
        if n == dense - 1 and row is not None:
            kernel, bias = kernel[:, [row]], bias[[row]]
        linear = torch.nn.Linear(*kernel.shape, dtype=torch.float64)
        linear.load_state_dict(
            {"weight": torch.tensor(kernel.T.copy()), "bias": torch.tensor(bias)}
        )
        modules.append(linear)
        if n < dense - 1:
            modules.append(torch.nn.ReLU())
        if f"LayerNorm_{n}" in layers:
            leaf = layers[f"LayerNorm_{n}"]
            norm = torch.nn.LayerNorm(kernel.shape[1], eps=1e-5, dtype=torch.float64)
            scale, bias = (
                torch.tensor(np.asarray(leaf[x][copy], float)) for x in ("scale", "bias")
            )
            norm.load_state_dict({"weight": scale, "bias": bias})
            modules.append(norm)
    return torch.nn.Sequential(*modules)


def gradients(network: torch.nn.Module, losses: torch.Tensor) -> list[list[np.ndarray]]:
    """Return the gradients of each loss, a list over parameters."""
    parameters = [*network.parameters()]
    return [
        [x.numpy() for x in torch.autograd.grad(loss, parameters, retain_graph=True)]
        for loss in losses
    ]


def as_flax(tensors: list[np.ndarray], params, copy: int, row: int | None) -> dict:
    """Return tensors in the order of torch as a stacked tree of Flax, zero in all other copies."""
    tree = {
        name: {k: np.zeros(np.shape(x)) for k, x in layer.items()} for name, layer in params.items()
    }
    names = [f"{kind}_{n}" for n in range(len(params)) for kind in ("Dense", "LayerNorm")]
    places = [(name, leaf) for name in names if name in params for leaf in ("weight", "bias")]
    last = max(name for name in params if name.startswith("Dense"))
    for (name, leaf), x in zip(places, tensors, strict=True):
        kind = "kernel" if name.startswith("Dense") else "scale"
        target = tree[name][kind if leaf == "weight" else "bias"][copy]
        if name == last and row is not None:
            target[..., row] = x.T[..., 0]
        else:
            target[...] = x.T
    return {"params": tree}


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]], ids=shape_name)
@pytest.mark.parametrize("kind", ["actor", "central", "local"])
def test_moments_are_gradients_of_the_exported_network(kind, shape):
    """∂L/∂parameters by autograd, of the trained network and of the exported one."""
    critic = "central" if kind == "actor" else kind
    run = teams.trained("tactical", critic=critic, **shape)
    nets, agent, rng = run.state.networks, 1, np.random.default_rng(3)
    x = probes(run.scaler, run.raw_features, teams.AGENTS)[kind == "central"].astype(float)[42:54]
    copy, row = (0, agent) if kind == "central" else (agent, None)
    params = nets.actor if kind == "actor" else nets.critic

    mean, scale = run.scaler.padded(x.shape[1])
    trained = double_network(params, copy, row)
    outputs = trained(torch.tensor((x - mean) / scale))
    target = torch.tensor(rng.standard_normal(outputs.shape))
    before = gradients(trained, ((outputs - target) ** 2).sum(1))

    if kind == "actor":
        folded, unit = weights.actor(nets, run.scaler, agent), (0.0, 1.0)
    else:
        folded, unit = weights.critic(nets, run.scaler, agent), weights.unit(nets, agent)
    exported = exported_network(folded)
    normal = (exported(torch.tensor(x)) - unit[0]) / unit[1]
    after = gradients(exported, ((normal - target) ** 2).sum(1))

    def moment(per_sample: list[list[np.ndarray]], power: int) -> list[np.ndarray]:
        return [np.mean([g**power for g in of], axis=0) for of in zip(*per_sample, strict=True)]

    opt = optax.ScaleByAdamState(
        np.array([7, 8, 9][: 1 if kind == "central" else 3]),
        as_flax(moment(before, 1), params["params"], copy, row),
        as_flax(moment(before, 2), params["params"], copy, row),
    )
    found = (
        weights.actor_moments(opt, run.scaler, agent)
        if kind == "actor"
        else weights.critic_moments(opt, run.scaler, agent, unit[1])
    )
    assert found.step == (7 if kind == "central" else 8)
    for name, a, b in zip(folded, found.exp_avg.values(), moment(after, 1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(), err_msg=name)

    # what the second moment leaves out is twice the mean product of weight and bias gradients
    products = np.mean([g[0] * g[1][:, None] for g in before], axis=0)
    wanted = moment(after, 2)
    wanted[0] = wanted[0] - 2 * mean * scale * products
    for name, a, b in zip(folded, found.exp_avg_sq.values(), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(), err_msg=name)


def exported_network(state_dict: dict[str, np.ndarray]) -> torch.nn.Sequential:
    """Return a state dict as a network in float64, Dropout left out."""
    modules: list[torch.nn.Module] = []
    indices = sorted({int(name.split(".")[1]) for name in state_dict})
    for i, after in pairwise([*indices, None]):
        tensors = {x: torch.tensor(state_dict[f"net.{i}.{x}"]).double() for x in ("weight", "bias")}
        shape = tensors["weight"].shape
        if len(shape) == 2:
            modules.append(torch.nn.Linear(shape[1], shape[0], dtype=torch.float64))
        else:
            modules.append(torch.nn.LayerNorm(shape[0], eps=1e-5, dtype=torch.float64))
        modules[-1].load_state_dict(tensors)
        if len(shape) == 2 and after is not None:
            modules.append(torch.nn.ReLU())
    return torch.nn.Sequential(*modules)
