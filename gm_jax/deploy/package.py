"""An export package on disk: every file checked against the manifest before it is believed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gm_jax.deploy.networks import Actors, Network
from gm_jax.deploy.trader import TEAMS
from gm_jax.errors import UserError


MANIFEST, CONFIG, STATE = "manifest.json", "model_config.json", "feature_state.json"
STAGED = ".new"  # ends the name of a file that a newer manifest has put in force
SCHEMAS = (1,)  # versions of model_config.json that can be read
TOLERANCE = 1e-5  # of probes, relative to logits above 1


@dataclass(frozen=True)
class Package:
    """What a team needs to decide."""

    config: Mapping[str, Any]
    actors: Actors
    feature_state: Mapping[str, Any]


def open_package(model: Path, system: str) -> Package:
    """Read the checkpoint of a system and what lies beside it.

    Args:
        model: `best_<system>_model.pth` or `final_…`, inside its package.
        system: what it is expected to be of.

    Raises:
        UserError: a file is missing, changed, or of another system, features or version.
    """
    directory = model.parent
    manifest = _manifest(directory)
    if model.name not in manifest:
        listed = ", ".join(name for name in manifest if name.endswith("_model.pth"))
        raise UserError(f"{directory} holds no {model.name}; its models are {listed}.")
    content = {name: read(directory, name, manifest) for name in (CONFIG, STATE, model.name)}
    for name in manifest:  # what is not used here must be whole too
        read(directory, name, manifest)
    config = json.loads(content[CONFIG])
    _require_system(config, system, directory)
    checkpoint = torch.load(io.BytesIO(content[model.name]), weights_only=True)
    probes = read(directory, "probes.json", manifest) if "probes.json" in manifest else None
    actors = _actors(checkpoint, config, model, probes)
    return Package(config, actors, json.loads(content[STATE]))


def _manifest(directory: Path) -> dict[str, str]:
    """Return SHA-256 by file name."""
    path = directory / MANIFEST
    try:
        files: dict[str, str] = json.loads(path.read_text())["files"]
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} is no export package: it has no {MANIFEST}. Make one by "
            "`gm-jax export RUN`, and copy the whole folder."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the run again.") from error
    return files


def read(directory: Path, name: str, manifest: Mapping[str, str]) -> bytes:
    """Return the content of a file that is what the manifest says.

    An export that was killed after its manifest was written leaves some files under their staged
    names; they are in force.

    Raises:
        UserError: the file is missing or has changed.
    """
    found = None
    for path in (directory / name, directory / (name + STAGED)):
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        if hashlib.sha256(found).hexdigest() == manifest[name]:
            return found
    what = "is missing" if found is None else "is not what was exported (its SHA-256 differs)"
    raise UserError(f"{directory / name} {what}; copy the package again, or export the run again.")


def _require_system(config: Mapping[str, Any], system: str, directory: Path) -> None:
    if config["schema_version"] not in SCHEMAS:
        raise UserError(
            f"{directory / CONFIG} has schema version {config['schema_version']}, this program "
            f"reads {', '.join(map(str, SCHEMAS))}: use the deploy_model.py of that package."
        )
    if config["system"] != system:
        raise UserError(
            f"{directory} holds a {config['system']} team, expected a {system} one: load it with "
            f"load_{config['system']}_agents."
        )


def _actors(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any], model: Path, probes: bytes | None
) -> Actors:
    """Return the networks, after their probes."""
    settings, names = config["settings"], [*config["features"]]
    team = TEAMS[config["system"]]
    shape = (len(names) + 1, settings["hidden_sizes"], settings["layer_norm"], len(team.ACTIONS))
    known = json.loads(probes)["models"][model.name]["actors"] if probes else checkpoint["actors"]
    networks = []
    for agent, entry, probe in zip(team.AGENTS, checkpoint["actors"], known, strict=True):
        wanted = probe["config"]["inputs"][:-1]
        if wanted != names:
            raise UserError(
                f"{model} wants the features {', '.join(wanted)}, {CONFIG} has "
                f"{', '.join(names)}: they belong to different exports."
            )
        network = Network(*shape)
        try:
            network.load_state_dict(entry.get("state_dict", entry), strict=True)
        except RuntimeError as error:
            raise UserError(
                f"{model}: the network of {agent} is not of the shape that {CONFIG} states "
                f"({str(error).splitlines()[-1].strip()}); they belong to different exports."
            ) from error
        networks.append(network.eval())
    actors = Actors(networks)
    _probe(networks, actors, known, team.AGENTS, model)
    return actors


def _probe(
    networks: Sequence[Network],
    actors: Actors,
    known: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    model: Path,
) -> None:
    """Refuse networks that do not answer as the trained ones did, one by one or stacked."""
    inputs, wanted = (
        np.array([np.asarray(probe[what], np.float32) for probe in known])
        for what in ("probe_inputs", "probe_outputs")
    )  # [A, P, O], [A, P, K]
    with torch.inference_mode():
        alone = [net(torch.from_numpy(x)).numpy() for net, x in zip(networks, inputs, strict=True)]
    stacked = [actors.logits(row) for row in inputs.swapaxes(0, 1)]
    for found in (np.array(alone), np.stack(stacked, axis=1)):
        errors = (np.abs(found - wanted) / np.maximum(np.abs(wanted), 1)).max(axis=(1, 2))
        for agent, error in zip(names, errors, strict=True):
            if not error <= TOLERANCE:
                raise UserError(
                    f"{model}, {agent}: logits differ from the trained network's by {error:.1e}, "
                    f"at most {TOLERANCE:.0e} is allowed: this PyTorch or this processor computes "
                    "something else."
                )


def agents(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the agents of a package, in the order of every agent axis."""
    return tuple(TEAMS[config["system"]].AGENTS)
