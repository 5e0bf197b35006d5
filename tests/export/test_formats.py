"""Safetensors and ONNX twins of the agents' networks."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest


torch = pytest.importorskip("torch", reason="the exporter needs PyTorch")

from gm_jax.errors import UserError  # noqa: E402
from gm_jax.export import agents, checkpoints, formats  # noqa: E402
from tests.export import teams  # noqa: E402
from tests.export.test_weights import SHAPES, shape_name  # noqa: E402


def team(system: str = "tactical", **changes: object):
    run = teams.trained(system, **changes)
    return agents.team(run, run.state.networks)


def names(system: str, ending: str) -> set[str]:
    of = teams.SYSTEMS[system].agents
    return {f"{agent}_{kind}.{ending}" for agent in of for kind in ("actor", "critic")}


def assert_bound(found: np.ndarray, network) -> None:
    wanted = network.probe_outputs
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) <= 1e-5 * np.maximum(network.unit, np.abs(wanted))).all()


def test_safetensors_are_the_state_dicts():
    library = pytest.importorskip("safetensors.numpy")
    for system in ("tactical", "strategic"):
        networks = team(system, **SHAPES[4])
        files = formats.safetensors_files(networks)
        assert set(files) == names(system, "safetensors")
        for network in networks:
            content = files[f"{network.name}.safetensors"]
            tensors = library.load(content)
            assert set(tensors) == set(network.state_dict)
            for name, x in network.state_dict.items():
                np.testing.assert_array_equal(tensors[name], x)
            (length,) = struct.unpack_from("<Q", content)
            metadata = json.loads(content[8 : 8 + length])["__metadata__"]
            assert (metadata["system"], metadata["agent"]) == (system, network.agent)
            assert (metadata["schema"], metadata["kind"]) == ("1", network.kind)
            assert json.loads(metadata["inputs"]) == [*network.inputs]


def test_safetensors_load_in_torch(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors import safe_open
    from safetensors.torch import load_file

    network = team("tactical", **SHAPES[0])[4]
    path = tmp_path / "risk_critic.safetensors"
    path.write_bytes(formats.safetensors_files([network])["risk_critic.safetensors"])
    module = checkpoints.torch_network(team("tactical", **SHAPES[0])[3])  # another one's
    module.load_state_dict(load_file(path))
    assert_bound(module(torch.tensor(network.probe_inputs)).detach().numpy(), network)
    with safe_open(path, "np") as file:
        assert file.metadata()["agent"] == "risk"


def test_safetensors_bytes_are_always_the_same():
    """The library itself writes metadata in another order each time."""
    pytest.importorskip("safetensors")
    networks = team("tactical", **SHAPES[0])
    assert (
        len({formats.safetensors_files(networks)["risk_actor.safetensors"] for _ in range(20)}) == 1
    )


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
def test_onnx_answers_as_flax(shape):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for critic in ("central", "local"):
        networks = team("strategic", critic=critic, **shape)
        files = formats.onnx_files(networks)
        assert set(files) == names("strategic", "onnx")
        for network in networks:
            content = files[f"{network.name}.onnx"]
            assert_bound(formats.onnx_outputs(content, network.probe_inputs), network)


@pytest.mark.parametrize("system", ["tactical", "strategic"])
def test_onnx_of_full_size_takes_any_batch(system):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    networks = team(system)
    files = formats.onnx_files(networks)
    for network in networks:
        session = runtime.InferenceSession(
            files[f"{network.name}.onnx"], providers=["CPUExecutionProvider"]
        )
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == ("inputs", ["batch", len(network.inputs)])
        output = "logits" if network.kind == "actor" else "value"
        assert (made.name, made.shape) == (output, ["batch", len(network.outputs)])
        for batch in (1, 7, 64, 0):
            x = network.probe_inputs[:batch]
            (found,) = session.run([output], {"inputs": x})
            assert_bound(found, replace(network, probe_outputs=network.probe_outputs[:batch]))
        nothing = np.zeros((1, len(network.inputs)), np.float32)  # no limit, flat, markets asleep
        with torch.inference_mode():
            wanted = checkpoints.torch_network(network)(torch.tensor(nothing)).numpy()
        (found,) = session.run(None, {"inputs": nothing})
        assert_bound(found, replace(network, probe_outputs=wanted))


def test_onnx_is_plain_and_says_what_it_is():
    onnx = pytest.importorskip("onnx")
    networks = team("strategic", **SHAPES[4])
    files = formats.onnx_files(networks)
    assert files == formats.onnx_files(networks)
    model = onnx.load_from_string(files["regime_detector_actor.onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        *["Gemm", "Relu", "LayerNormalization"] * 2,
        *("Gemm", "Relu", "Gemm"),
    ]
    assert [x.version for x in model.opset_import] == [17]
    assert [x.name for x in model.graph.initializer] == [*networks[2].state_dict]
    about = {x.key: x.value for x in model.metadata_props}
    assert (about["system"], about["agent"], about["kind"]) == (
        "strategic",
        "regime_detector",
        "actor",
    )
    assert json.loads(about["outputs"])[5:] == ["REDUCE_RISK", "INCREASE_RISK"]


def test_onnx_that_answers_otherwise_is_refused():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = team("tactical", **SHAPES[0])[0]
    wrong = replace(network, probe_outputs=network.probe_outputs * (1 + np.float32(2e-5)))
    with pytest.raises(UserError, match="actor of tactical in ONNX differs"):
        formats.onnx_files([wrong])
    wrong = replace(network, state_dict={k: x * np.nan for k, x in network.state_dict.items()})
    with pytest.raises(UserError, match="nan times"):
        formats.onnx_files([wrong])


@pytest.mark.parametrize("package", ["onnx", "safetensors"])
def test_missing_package_is_named(package, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    make = {"onnx": formats.onnx_files, "safetensors": formats.safetensors_files}[package]
    with pytest.raises(
        UserError, match=f"{package} is not installed.*pip install 'gm-jax\\[export\\]'"
    ):
        make(team("tactical", **SHAPES[0]))
