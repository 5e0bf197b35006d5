"""Twins of the agents' networks: safetensors, and ONNX of raw features."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gm_jax.deploy.networks import EPSILON, positions
from gm_jax.errors import UserError
from gm_jax.export.agents import SCHEMA, AgentNetwork


OPSET, IR_VERSION = 17, 8  # the first with LayerNormalization, so that old runtimes read it too


def safetensors_files(networks: Sequence[AgentNetwork]) -> dict[str, bytes]:
    """Return `<agent>_<kind>.safetensors` of each network, the same bytes for the same input.

    Raises:
        UserError: safetensors is not installed.
    """
    save = _need("safetensors.numpy").save
    return {
        f"{network.name}.safetensors": _in_order(save(network.state_dict, _metadata(network)))
        for network in networks
    }


def _in_order(file: bytes) -> bytes:
    """Return the file with its header sorted: safetensors writes metadata in a random order."""
    (length,) = struct.unpack_from("<Q", file)
    header = json.loads(file[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


def onnx_files(networks: Sequence[AgentNetwork]) -> dict[str, bytes]:
    """Return `<agent>_<kind>.onnx` of each network: [batch, I] raw features → [batch, K].

    Where onnxruntime is installed, its outputs are compared with those of Flax.

    Raises:
        UserError: onnx is not installed, or onnxruntime gives other outputs.
    """
    onnx = _need("onnx")
    files = {}
    for network in networks:
        model = onnx_model(network)
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString(deterministic=True)
        if importlib.util.find_spec("onnxruntime"):
            network.require_agreement(onnx_outputs(content, network.probe_inputs), "ONNX")
        files[f"{network.name}.onnx"] = content
    return files


def onnx_model(network: AgentNetwork) -> Any:
    """Return the network as an ONNX model."""
    onnx = _need("onnx")
    tensor = onnx.helper.make_tensor_value_info
    output = "logits" if network.kind == "actor" else "value"
    nodes = list(_nodes(onnx, network, output))
    graph = onnx.helper.make_graph(
        nodes,
        network.name,
        [tensor("inputs", onnx.TensorProto.FLOAT, ["batch", len(network.inputs)])],
        [tensor(output, onnx.TensorProto.FLOAT, ["batch", len(network.outputs)])],
        [onnx.numpy_helper.from_array(x, name) for name, x in network.state_dict.items()],
    )
    model = onnx.helper.make_model(
        graph,
        producer_name="gm_jax",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(model, _metadata(network))
    return model


def _nodes(onnx: ModuleType, network: AgentNetwork, output: str) -> Iterator[Any]:
    """Yield the nodes in order, each named like the module of torch that it stands for."""
    hidden = len(network.hidden_sizes)
    linear, norm = positions(hidden, network.layer_norm)
    x = "inputs"

    def node(kind: str, i: int, name: str, inputs: list[str], **attributes: Any) -> Any:
        nonlocal x
        made = onnx.helper.make_node(kind, [x, *inputs], [name], f"net.{i}", **attributes)
        x = name
        return made

    for layer, i in enumerate(linear):
        of = [f"net.{i}.weight", f"net.{i}.bias"]
        yield node("Gemm", i, f"linear_{layer}" if layer < hidden else output, of, transB=1)
        if layer < hidden:
            yield node("Relu", i + 1, f"relu_{layer}", [])
        if layer < network.layer_norm:
            of = [f"net.{norm[layer]}.{leaf}" for leaf in ("weight", "bias")]
            yield node("LayerNormalization", norm[layer], f"norm_{layer}", of, epsilon=EPSILON)


def onnx_outputs(content: bytes, inputs: np.ndarray) -> np.ndarray:
    """Return what onnxruntime makes of inputs [batch, I] f32, on the CPU."""
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: np.ndarray = session.run(None, {"inputs": inputs})[0]
    return outputs


def _metadata(network: AgentNetwork) -> dict[str, str]:
    """Return what the file says of itself."""
    return {
        "schema": str(SCHEMA),
        "system": network.system,
        "agent": network.agent,
        "kind": network.kind,
        "inputs": json.dumps(network.inputs),
        "outputs": json.dumps(network.outputs),
        "hidden_sizes": json.dumps(network.hidden_sizes),
        "layer_norm": str(network.layer_norm),
    }


def _need(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise UserError(
            f"{package} is not installed, and this format needs it: pip install 'gm-jax[export]'"
        ) from error
