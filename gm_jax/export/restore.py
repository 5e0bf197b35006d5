"""Networks back from a team's `.pth` file: the inverse of `weights.py`.

What the export folded in is unfolded, in float64:

    W = W' · scale,  b = b' + W' · mean;  w = w' / deviation,  c = c' / deviation

The mean of the returns stays in c: the value normalisation starts with mean 0 and the deviation
that the file states.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from gm_jax.config import change
from gm_jax.deploy.networks import positions
from gm_jax.errors import UserError
from gm_jax.export import agents
from gm_jax.mappo.scaling import Scaler, rescaled
from gm_jax.mappo.types import Networks, ValueNorm
from gm_jax.run.setup import static_config
from gm_jax.systems import System


PROBES = "probes.json"  # beside a file of the layout `grandmodel`
Entries = Sequence[Mapping[str, Any]]  # of the agents, in the layout `gm`


@dataclass(frozen=True)
class Restored:
    """A team read from a file."""

    content: dict[str, Any]  # in the layout `gm`, see `checkpoints.model_content`
    settings: dict[str, Any]  # those that networks of this shape need
    scaler: Scaler
    networks: Networks  # of features under `scaler`


def read(path: Path, system: System) -> Restored:
    """Read a team, which must answer the probes in its file as the trained one did.

    Args:
        path: a file in the layout `gm`, or in `grandmodel` with `probes.json` beside it.
        system: what it is expected to be of.

    Raises:
        UserError: no such file, not of this system, or not what was exported.
    """
    content = _content(path)
    if content["schema"] != agents.SCHEMA or content["system"] != system.name:
        raise UserError(
            f"{path} holds a {content['system']} team, schema {content['schema']}; expected a "
            f"{system.name} one, schema {agents.SCHEMA}."
        )
    try:
        restored = _restored(content, system)
        worst = _disagreement(restored, system)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not what gm-jax exports ({type(error).__name__}: {error}); export the run "
            "again."
        ) from error
    if not worst <= 1:  # NaN too
        raise UserError(
            f"{path} does not answer its probes as the trained networks did: {worst:.3g} times "
            f"what is admitted, {agents.BOUND:g} of an output; was it edited? Export the run again."
        )
    return restored


def _content(path: Path) -> dict[str, Any]:
    """Return what a team's file holds, in the layout `gm`."""
    try:
        found = torch.load(io.BytesIO(path.read_bytes()), weights_only=True, map_location="cpu")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} is no file of PyTorch's weights ({reason}).") from error
    keys = set(found) if isinstance(found, dict) else set()
    if {"schema", "system", "actors", "critics"} <= keys:
        return dict(found)
    if {"actors", "critics", "actor_optimizers"} <= keys:
        return _from_grandmodel(path, found)
    what = f"one network of {found['agent']} alone" if "agent" in keys else "no team of gm-jax"
    raise UserError(
        f"{path} holds {what}; expected best_<system>_model.pth or final_<system>_model.pth of an "
        "export, or a file of save_checkpoint."
    )


def _from_grandmodel(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file of the layout `grandmodel` in the layout `gm`."""
    beside = path.parent / PROBES
    try:
        probes = json.loads(beside.read_text())
        known = probes["models"][path.name]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is of GrandModel's layout, which says neither what its inputs are nor how "
            f"they were scaled; gm-jax writes that to {PROBES}, and there is none for it in "
            f"{path.parent}. Export the run again with layout gm, or copy the whole folder."
        ) from error
    content: dict[str, Any] = {"schema": probes["schema"], "system": probes["system"]}
    for kind in ("actors", "critics"):
        content[kind] = [
            {
                "schema": probes["schema"],
                "system": probes["system"],
                "agent": probe["agent"],
                "state_dict": state_dict,
                "scaler": probe["scaler"],
                "probe_inputs": torch.tensor(probe["probe_inputs"]),
                "probe_outputs": torch.tensor(probe["probe_outputs"]),
                "config": probe["config"],
            }
            for probe, state_dict in zip(known[kind], found[kind], strict=True)
        ]
    return content


def _restored(content: dict[str, Any], system: System) -> Restored:
    """Return the team of a content in the layout `gm`."""
    actors, critics = content["actors"], content["critics"]
    for entries in (actors, critics):
        if tuple(entry["agent"] for entry in entries) != system.agents:
            raise ValueError(f"the agents are not {', '.join(system.agents)}")
    shape = actors[0]["config"]
    settings = {
        "features": list(shape["inputs"][:-1]),
        "hidden_sizes": list(shape["hidden_sizes"]),
        "layer_norm": shape["layer_norm"],
        "critic": "local" if critics[0]["config"]["inputs"] == shape["inputs"] else "central",
    }
    scaler = Scaler(*(np.array(actors[0]["scaler"][x], np.float64) for x in ("mean", "scale")))
    unit = np.array([entry["config"]["unit"] for entry in critics])
    raw = Networks(
        actor=_stacked([_layers(entry) for entry in actors]),
        critic=_critic(critics, unit, settings["critic"] == "central"),
        value_norm=ValueNorm(
            mean=jnp.zeros(len(unit)),
            square=jnp.asarray(unit**2, jnp.float32),
            weight=jnp.ones(()),
        ),
    )
    plain = Scaler(np.zeros_like(scaler.mean), np.ones_like(scaler.scale))
    return Restored(content, settings, scaler, rescaled(raw, plain, scaler))


def _layers(entry: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return a network's tensors under Flax's names, in float64."""
    shape, tensors = entry["config"], entry["state_dict"]
    linear, norm = positions(len(shape["hidden_sizes"]), shape["layer_norm"])
    layers = {}
    for kind, indices, weight in (("Dense", linear, "kernel"), ("LayerNorm", norm, "scale")):
        for number, i in enumerate(indices):
            layers[f"{kind}_{number}"] = {
                name: tensors[f"net.{i}.{leaf}"].double().numpy().T
                for name, leaf in ((weight, "weight"), ("bias", "bias"))
            }
    return layers


def _critic(entries: Entries, unit: np.ndarray, central: bool) -> Any:
    """Return the critics as one network each, or as the one whose outputs they are."""
    last = f"Dense_{len(entries[0]['config']['hidden_sizes'])}"
    own = [_layers(entry) for entry in entries]
    for layers, deviation in zip(own, unit, strict=True):
        layers[last] = {name: x / deviation for name, x in layers[last].items()}
    if not central:
        return _stacked(own)
    output = {name: np.concatenate([x[last][name] for x in own], axis=-1) for name in own[0][last]}
    trunks = [{name: x for name, x in layers.items() if name != last} for layers in own]
    for trunk in trunks[1:]:
        for name, leaves in trunk.items():
            if any(not np.array_equal(x, trunks[0][name][leaf]) for leaf, x in leaves.items()):
                raise ValueError(f"the critics share one trunk, but their {name} differ")
    return _stacked([{**trunks[0], last: output}])


def _stacked(copies: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> Any:
    """Return parameters with a leading axis of copies, f32."""
    return {
        "params": {
            name: {
                leaf: jnp.asarray(np.stack([copy[name][leaf] for copy in copies]), jnp.float32)
                for leaf in leaves
            }
            for name, leaves in copies[0].items()
        }
    }


def _disagreement(restored: Restored, system: System) -> float:
    """Return the largest difference from the probes' outputs, in shares of what is admitted."""
    actors, critics = restored.content["actors"], restored.content["critics"]
    config = static_config(system, change(system.settings, restored.settings, "file"))
    inputs = (entries[0]["probe_inputs"].numpy() for entries in (actors, critics))
    logits, values = agents.answers(config, restored.networks, restored.scaler, *inputs)
    shares = []
    for agent, (actor, critic) in enumerate(zip(actors, critics, strict=True)):
        for entry, found in ((actor, logits[:, agent]), (critic, values[:, agent, None])):
            wanted = entry["probe_outputs"].numpy().astype(np.float64)
            bound = agents.BOUND * np.maximum(entry["config"]["unit"], np.abs(wanted))
            shares.append((np.abs(found - wanted) / bound).max())
    return float(np.max(shares))  # NaN where one is
