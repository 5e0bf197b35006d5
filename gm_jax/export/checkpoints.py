"""The `.pth` files of an export, for `torch.load(weights_only=True)`: tensors and plain types.

Layout `gm` has everything that is needed to use and to check a network beside its weights; layout
`grandmodel` is what the trainers of GrandModel load.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gm_jax.deploy.networks import EPSILON, Network
from gm_jax.errors import UserError
from gm_jax.export import weights
from gm_jax.export.agents import SCHEMA, AgentNetwork, Trained, team
from gm_jax.mappo import learner
from gm_jax.mappo.types import Networks


LAYOUTS = ("gm", "grandmodel")
ADAM_EPSILON = 1e-5  # as in `mappo.learner`
RECENT = 100  # episodes of avg_reward_100

Team = Sequence[AgentNetwork]


def files(layout: str, trained: Trained) -> dict[str, bytes]:
    """Return every file of a layout by its name; the same input gives the same bytes.

    Agents have the networks that validation chose, which are those of `best_<system>_model.pth`.

    Args:
        layout: `gm` or `grandmodel`.
        trained: the run.

    Raises:
        UserError: no such layout, or networks that float32 cannot carry over.
    """
    if layout not in LAYOUTS:
        raise UserError(f"The layout is {layout!r}, expected {' or '.join(LAYOUTS)}.")
    system, state = trained.config.system.name, trained.state
    best = _checked(trained, learner.chosen(state))
    models = {
        f"best_{system}_model.pth": best,
        f"final_{system}_model.pth": _checked(trained, state.networks),
    }
    if layout == "gm":
        own = {f"{network.name}.pth": agent_content(network) for network in best}
        return _saved(own | {name: model_content(x) for name, x in models.items()})
    own = {f"{network.name}.pth": _tensors(network.state_dict) for network in best}
    newest = int(state.iteration)
    ages = int(state.best.iteration) or newest, newest
    whole = {
        name: grandmodel_content(trained, networks, age)
        for (name, networks), age in zip(models.items(), ages, strict=True)
    }
    probes = json.dumps(probes_content(models), allow_nan=False)
    return _saved(own | whole) | {"probes.json": probes.encode()}


def model_file(trained: Trained, nets: Networks) -> bytes:
    """Return a team's file in the layout `gm`.

    Args:
        trained: the run.
        nets: one of its teams of networks.

    Raises:
        UserError: networks that float32 cannot carry over.
    """
    return as_bytes(model_content(_checked(trained, nets)))


def _checked(trained: Trained, nets: Networks) -> Team:
    """Return the networks of a team, which PyTorch computes as Flax does."""
    found = team(trained, nets)
    for network in found:
        network.require_agreement(torch_outputs(network), "PyTorch")
    return found


def torch_network(network: AgentNetwork) -> Network:
    """Return the network in torch, its weights loaded strictly."""
    with torch.device("meta"):  # no weights are drawn that are then replaced
        module = Network(
            len(network.inputs), network.hidden_sizes, network.layer_norm, len(network.outputs)
        )
    module.load_state_dict(_tensors(network.state_dict), strict=True, assign=True)
    return module.eval()


def torch_outputs(network: AgentNetwork) -> np.ndarray:
    """Return what torch makes of the probes, [P, K] f32."""
    with torch.inference_mode():
        outputs: np.ndarray = torch_network(network)(torch.tensor(network.probe_inputs)).numpy()
    return outputs


def agent_content(network: AgentNetwork) -> dict[str, Any]:
    """Return the content of an agent's file in the layout `gm`."""
    return {
        "schema": SCHEMA,
        "system": network.system,
        "agent": network.agent,
        "state_dict": _tensors(network.state_dict),
        "scaler": _scaler(network),
        "probe_inputs": torch.tensor(network.probe_inputs),
        "probe_outputs": torch.tensor(network.probe_outputs),
        "config": describe(network),
    }


def model_content(networks: Team) -> dict[str, Any]:
    """Return the content of a team's file in the layout `gm`."""
    content: dict[str, Any] = {"schema": SCHEMA, "system": networks[0].system}
    for kind in ("actor", "critic"):
        content[f"{kind}s"] = [
            agent_content(network) for network in networks if network.kind == kind
        ]
    return content


def describe(network: AgentNetwork) -> dict[str, Any]:
    """Return what it takes to build and to feed the network, in plain types.

    Its outputs for the probes are right to 1e-5 · max(unit, |output|).
    """
    return {
        "kind": network.kind,
        "inputs": list(network.inputs),
        "hidden_sizes": list(network.hidden_sizes),
        "layer_norm": network.layer_norm,
        "outputs": list(network.outputs),
        "eps": EPSILON,
        "unit": network.unit,
    }


def grandmodel_content(trained: Trained, networks: Team, age: int) -> dict[str, Any]:
    """Return the content of a team's file in the layout `grandmodel`, nine keys.

    Its optimisers are those of the run's end: for the networks that validation chose, none is kept.

    Args:
        trained: the run.
        networks: of the team.
        age: iterations that they were trained for.
    """
    content = record(trained)
    content["training_stats"]["networks_of_episode"] = age
    for kind in ("actor", "critic"):
        own = [network for network in networks if network.kind == kind]
        content[f"{kind}s"] = [_tensors(network.state_dict) for network in own]
        content[f"{kind}_optimizers"] = [adam(trained, network) for network in own]
    return content


def record(trained: Trained) -> dict[str, Any]:
    """Return what GrandModel keeps of a training; an episode is an iteration, the team's mean.

    Rewards are in bp a window, lengths in bars; losses are means over the team and the iteration.
    """
    config, done = trained.config, int(trained.state.iteration)
    rows = [row for row in trained.history if row["iteration"] <= done]
    bars = config.rollout_length * config.num_rollouts
    rewards, actor_losses, critic_losses = (
        [math.fsum(row[name].values()) / len(row[name]) for row in rows]
        for name in ("reward", "actor_loss", "critic_loss")
    )
    recent = rewards[-RECENT:]
    return {
        "training_stats": {
            "episodes": len(rows),
            "total_steps": rows[-1]["env_steps"] if rows else 0,
            "best_reward": max(rewards, default=math.nan),
            "avg_reward_100": math.fsum(recent) / len(recent) if recent else math.nan,
            "windows_per_episode": config.num_envs,
        },
        "episode_rewards": rewards,
        "episode_lengths": [bars] * len(rows),
        "actor_losses": actor_losses,
        "critic_losses": critic_losses,
    }


def adam(trained: Trained, network: AgentNetwork) -> dict[str, Any]:
    """Return the state dict of a torch Adam over a network's parameters, as the run left it."""
    module, settings, state = torch_network(network), trained.settings, trained.state
    agent = trained.config.system.agents.index(network.agent)
    if network.kind == "actor":
        rate = settings.lr_actor
        moments = weights.actor_moments(state.actor_opt, trained.scaler, agent)
    else:
        rate = settings.lr_critic
        moments = weights.critic_moments(state.critic_opt, trained.scaler, agent, network.unit)
    optimiser = torch.optim.Adam(module.parameters(), lr=rate, eps=ADAM_EPSILON)
    mean, square = _tensors(moments.exp_avg), _tensors(moments.exp_avg_sq)
    for name, parameter in module.named_parameters():
        optimiser.state[parameter] = {
            "step": torch.tensor(float(moments.step)),
            "exp_avg": mean[name],
            "exp_avg_sq": square[name],
        }
    return optimiser.state_dict()


def probes_content(models: Mapping[str, Team]) -> dict[str, Any]:
    """Return the content of `probes.json`: what the layout `grandmodel` has no other place for.

    Args:
        models: teams by the name of their file; the agents' own files are the first one's.
    """
    system = next(iter(models.values()))[0].system
    content: dict[str, Any] = {"schema": SCHEMA, "system": system, "models": {}}
    for name, networks in models.items():
        content["models"][name] = {
            f"{kind}s": [
                {
                    "agent": network.agent,
                    "scaler": _scaler(network),
                    "probe_inputs": network.probe_inputs.tolist(),
                    "probe_outputs": network.probe_outputs.tolist(),
                    "config": describe(network),
                }
                for network in networks
                if network.kind == kind
            ]
            for kind in ("actor", "critic")
        }
    return content


def _scaler(network: AgentNetwork) -> dict[str, list[float]]:
    return {"mean": network.scaler.mean.tolist(), "scale": network.scaler.scale.tolist()}


def _tensors(state_dict: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return tensors of their own memory."""
    return {name: torch.tensor(x) for name, x in state_dict.items()}


def _saved(content: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: as_bytes(x) for name, x in content.items()}


def as_bytes(content: Any) -> bytes:
    """Return a content as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
