"""Networks back from `.pth` files: what was exported answers as it did before."""

from __future__ import annotations

import numpy as np
import pytest


torch = pytest.importorskip("torch", reason="the exporter needs PyTorch")

from dataclasses import replace  # noqa: E402

from gm_jax.config import change  # noqa: E402
from gm_jax.errors import UserError  # noqa: E402
from gm_jax.export import agents, checkpoints, restore, weights  # noqa: E402
from gm_jax.mappo import learner  # noqa: E402
from gm_jax.mappo.scaling import Scaler, rescaled  # noqa: E402
from gm_jax.run.setup import static_config  # noqa: E402
from gm_jax.systems import SYSTEMS  # noqa: E402
from tests.export import teams  # noqa: E402


KINDS = [
    ("tactical", {"hidden_sizes": (8, 8, 8)}),
    ("tactical", {"hidden_sizes": (16,), "critic": "local"}),
    ("strategic", {"hidden_sizes": (32, 16, 8), "layer_norm": 2}),
    ("strategic", {"hidden_sizes": (8, 8), "layer_norm": 1, "critic": "local"}),
]
each_kind = pytest.mark.parametrize(("system", "changes"), KINDS)


def written(path, system="tactical", **changes):
    """Write the best networks of a made-up run; return the run."""
    run = teams.trained(system, **({"hidden_sizes": (8, 8)} | changes))
    path.write_bytes(checkpoints.model_file(run, learner.chosen(run.state)))
    return run


def raw_inputs(run, count=200):
    """Draw inputs of an actor and of a central critic, with the tails that bars have."""
    rng = np.random.default_rng(8)
    rows = len(run.scaler.mean)
    features = run.scaler.mean + run.scaler.scale * rng.standard_t(4, (count, rows))
    own = np.column_stack([features, rng.uniform(-1, 1, (count, 1))])
    seen = np.column_stack([features, rng.uniform(-1, 1, (count, 3 + teams.AGENTS))])
    return own.astype(np.float32), (seen if run.config.central else own).astype(np.float32)


def references(config, nets, scaler, inputs):
    """Return logits [P, A, K] and values in bp [P, A], in float64 and without Flax."""
    own, seen = inputs
    logits = np.stack([teams.reference(nets.actor, i, own, scaler) for i in range(3)], axis=1)
    if config.central:
        normal = teams.reference(nets.critic, 0, seen, scaler)
    else:
        each = [teams.reference(nets.critic, i, seen, scaler) for i in range(3)]
        normal = np.concatenate(each, axis=1)
    moments = np.array([weights.unit(nets, i) for i in range(3)])
    return logits, normal * moments[:, 1] + moments[:, 0]


@each_kind
def test_restored_networks_answer_as_the_trained_ones(tmp_path, system, changes):
    run = written(tmp_path / "team.pth", system, **changes)
    nets = learner.chosen(run.state)
    found = restore.read(tmp_path / "team.pth", SYSTEMS[system])
    settings = change(SYSTEMS[system].settings, found.settings, "file")
    for name in ("features", "hidden_sizes", "layer_norm", "critic"):
        assert getattr(settings, name) == getattr(run.settings, name)
    assert found.scaler.equals(run.scaler)

    inputs = raw_inputs(run, 40)
    wanted = references(run.config, nets, run.scaler, inputs)
    again = references(run.config, found.networks, found.scaler, inputs)
    by_flax = agents.answers(
        static_config(SYSTEMS[system], settings), found.networks, found.scaler, *inputs
    )
    units = 1.0, np.array([weights.unit(nets, i)[1] for i in range(3)])
    for want, *others, unit in zip(wanted, again, by_flax, units, strict=True):
        assert want.std(0).min() > 0.05 * np.min(unit)  # they say something
        for other in others:
            assert (np.abs(other - want) <= 1e-5 * np.maximum(unit, np.abs(want))).all()


@each_kind
def test_saved_loaded_and_saved_again_is_the_same_file(tmp_path, system, changes):
    run = written(tmp_path / "first.pth", system, **changes)
    first = restore.read(tmp_path / "first.pth", SYSTEMS[system])
    once_more = replace(run, state=run.state.replace(networks=first.networks))
    (tmp_path / "second.pth").write_bytes(checkpoints.model_file(once_more, first.networks))
    second = restore.read(tmp_path / "second.pth", SYSTEMS[system])
    for kind in ("actors", "critics"):
        for a, b in zip(first.content[kind], second.content[kind], strict=True):
            assert a["config"]["inputs"] == b["config"]["inputs"]
            assert a["config"]["unit"] == pytest.approx(b["config"]["unit"], rel=1e-6)
            for name, x in a["state_dict"].items():
                largest = float(x.abs().max())
                torch.testing.assert_close(
                    b["state_dict"][name], x, rtol=1e-6, atol=1e-6 * largest, msg=name
                )


def test_networks_moved_to_another_scaler_are_the_same_function_of_raw_features():
    run = teams.trained("strategic", hidden_sizes=(16, 8), layer_norm=1)
    rng = np.random.default_rng(2)
    other = Scaler(
        run.scaler.mean + run.scaler.scale * rng.uniform(-1, 1, len(run.scaler.mean)),
        run.scaler.scale * rng.uniform(0.3, 3, len(run.scaler.scale)),
    )
    nets, inputs = run.state.networks, raw_inputs(run, 40)
    moved = rescaled(nets, run.scaler, other)
    wanted = references(run.config, nets, run.scaler, inputs)
    found = references(run.config, moved, other, inputs)
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    wrong = references(run.config, nets, other, inputs)
    assert np.abs(wrong[0] - wanted[0]).max() > 0.1
    assert rescaled(nets, run.scaler, run.scaler) is nets


def test_layout_of_grandmodel_is_read_with_its_probes_and_refused_without(tmp_path):
    run = teams.trained("tactical", hidden_sizes=(8, 8))
    for name, content in checkpoints.files("grandmodel", run).items():
        (tmp_path / name).write_bytes(content)
    written(tmp_path / "gm.pth", hidden_sizes=(8, 8))
    found = restore.read(tmp_path / "best_tactical_model.pth", SYSTEMS["tactical"])
    wanted = restore.read(tmp_path / "gm.pth", SYSTEMS["tactical"])
    for a, b in zip(
        np.asarray(found.networks.actor["params"]["Dense_0"]["kernel"]),
        np.asarray(wanted.networks.actor["params"]["Dense_0"]["kernel"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "again.pth").write_bytes(checkpoints.as_bytes(found.content))
    assert restore.read(tmp_path / "again.pth", SYSTEMS["tactical"]).settings == found.settings
    (tmp_path / "probes.json").unlink()
    with pytest.raises(UserError, match=r"GrandModel's layout.* writes that to probes.json"):
        restore.read(tmp_path / "best_tactical_model.pth", SYSTEMS["tactical"])


def edited(path, change_content):
    content = torch.load(path, weights_only=True)
    change_content(content)
    torch.save(content, path)


def scale_bias(content):
    content["actors"][1]["state_dict"]["net.0.bias"] *= 1.01


def change_trunk(content):
    content["critics"][2]["state_dict"]["net.0.weight"] += 1


def cut_layer(content):
    del content["actors"][0]["state_dict"]["net.3.weight"]


def spoil(content):
    content["critics"][0]["state_dict"]["net.5.weight"][:] = torch.nan


def swap_agents(content):
    content["actors"].reverse()


@pytest.mark.parametrize(
    ("change_content", "said"),
    [
        (scale_bias, "does not answer its probes"),
        (spoil, "does not answer its probes"),
        (change_trunk, "the critics share one trunk"),
        (cut_layer, "is not what gm-jax exports"),
        (swap_agents, "the agents are not tactical, risk, execution"),
        (lambda content: content.update(schema=99), "schema 99; expected a tactical one"),
        (lambda content: content.pop("critics"), "holds no team of gm-jax"),
    ],
)
def test_files_that_are_not_what_was_exported_are_refused(tmp_path, change_content, said):
    written(tmp_path / "team.pth")
    edited(tmp_path / "team.pth", change_content)
    with pytest.raises(UserError, match=said):
        restore.read(tmp_path / "team.pth", SYSTEMS["tactical"])


def test_other_files_are_refused(tmp_path):
    written(tmp_path / "team.pth")
    with pytest.raises(UserError, match="holds a tactical team"):
        restore.read(tmp_path / "team.pth", SYSTEMS["strategic"])
    with pytest.raises(UserError, match=r"Cannot read .*none.pth: No such file"):
        restore.read(tmp_path / "none.pth", SYSTEMS["tactical"])
    (tmp_path / "text.pth").write_text("Date,Open\n")
    with pytest.raises(UserError, match="is no file of PyTorch's weights"):
        restore.read(tmp_path / "text.pth", SYSTEMS["tactical"])
    run = teams.trained("tactical", hidden_sizes=(8, 8))
    alone = checkpoints.files("gm", run)["risk_actor.pth"]
    (tmp_path / "risk_actor.pth").write_bytes(alone)
    with pytest.raises(UserError, match="one network of risk alone; expected best_<system>_model"):
        restore.read(tmp_path / "risk_actor.pth", SYSTEMS["tactical"])
