"""The networks of a team as they are exported: weights, names, and what Flax makes of probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.types import Array
from gm_jax.errors import UserError
from gm_jax.export import weights
from gm_jax.export.weights import StateDict
from gm_jax.mappo import networks, value_norm
from gm_jax.mappo.scaling import Scaler
from gm_jax.mappo.types import Config, Networks, TrainState
from gm_jax.settings import Settings


SCHEMA = 1  # of the exported files
BOUND = 1e-5  # on the difference from Flax, × max(unit, size)
BARS, RANDOM = 48, 16  # probes of either kind
ACCOUNT = ("position", "drawdown", "time_left")  # as in `env.core.observe`


@dataclass(frozen=True)
class Trained:
    """A run as far as it is exported."""

    config: Config
    settings: Settings
    scaler: Scaler
    state: TrainState
    history: Sequence[Mapping[str, Any]]  # rows of metrics.jsonl
    raw_features: np.ndarray  # [N, F] of training bars, unscaled; some are taken as probes


@dataclass(frozen=True)
class AgentNetwork:
    """One actor or critic that takes raw features."""

    system: str
    agent: str
    kind: str  # actor or critic
    inputs: tuple[str, ...]  # I names
    hidden_sizes: tuple[int, ...]
    layer_norm: int
    outputs: tuple[str, ...]  # K names
    state_dict: StateDict
    scaler: Scaler  # already in the first layer; kept for the reader
    probe_inputs: np.ndarray  # [P, I] f32
    probe_outputs: np.ndarray  # [P, K] f32, by Flax: logits without mask, or values in bp
    unit: float  # of the outputs: 1 for logits, the returns' deviation for values

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.agent}_{self.kind}"

    def require_agreement(self, found: np.ndarray, program: str) -> None:
        """Refuse outputs for the probes that are not Flax's.

        Args:
            found: [P, K] f32.
            program: that gave them.

        Raises:
            UserError: they differ by more than 1e-5 · max(unit, |output|).
        """
        wanted = self.probe_outputs.astype(np.float64)
        shares = np.abs(found - wanted) / (BOUND * np.maximum(self.unit, np.abs(wanted)))
        if shares.max() <= 1:  # false for NaN
            return
        offset = np.abs(self.scaler.mean) / self.scaler.scale
        worst = int(offset.argmax())
        raise UserError(
            f"The {self.kind} of {self.agent} in {program} differs from the trained one by "
            f"{shares.max():.3g} times what is admitted, {BOUND:g} of its output. Either float32 "
            f"cannot carry its raw features (farthest from zero is {self.inputs[worst]}, its mean "
            f"{offset[worst]:.3g} times its deviation: leave it out of `features` and train anew), "
            f"or this {program} computes something else: install the versions of constraints.txt."
        )


def team(trained: Trained, nets: Networks) -> tuple[AgentNetwork, ...]:
    """Return the actors and then the critics of one of the run's teams of networks.

    Raises:
        UserError: they or the training bars hold numbers that are not finite.
    """
    # the parameters are float32, whatever precision their products had in training
    config, scaler = replace(trained.config, precision="float32"), trained.scaler
    agents, names = config.system.agents, input_names(config, trained.settings.features)
    own, everything = probes(scaler, trained.raw_features, len(agents))
    seen = everything if config.central else own
    logits, values = answers(config, nets, scaler, own, seen)
    _require_finite({"inputs": seen, "logits": logits, "values": values})

    def actor(agent: int) -> AgentNetwork:
        return AgentNetwork(
            system=config.system.name,
            agent=agents[agent],
            kind="actor",
            inputs=names["actor"],
            hidden_sizes=config.hidden_sizes,
            layer_norm=config.layer_norm,
            outputs=config.system.actions,
            state_dict=weights.actor(nets, scaler, agent),
            scaler=scaler,
            probe_inputs=own,
            probe_outputs=logits[:, agent],
            unit=1.0,
        )

    def critic(agent: int) -> AgentNetwork:
        return replace(
            actor(agent),
            kind="critic",
            inputs=names["critic"],
            outputs=("value in bp",),
            state_dict=weights.critic(nets, scaler, agent),
            probe_inputs=seen,
            probe_outputs=values[:, agent, None],
            unit=weights.unit(nets, agent)[1],
        )

    return tuple(make(agent) for make in (actor, critic) for agent in range(len(agents)))


def input_names(config: Config, features: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of the inputs of actors and of critics, in order."""
    own = (*features, "role_value")
    roles = (f"role_value_{agent}" for agent in config.system.agents)
    return {"actor": own, "critic": (*features, *ACCOUNT, *roles) if config.central else own}


def _require_finite(found: Mapping[str, np.ndarray]) -> None:
    for what, x in found.items():
        if not np.isfinite(x).all():
            raise UserError(
                f"The {what} of the networks on training bars are not all finite, so that nothing "
                "can be compared with them. Was the run's data or checkpoint edited?"
            )


def probes(scaler: Scaler, raw_features: np.ndarray, agents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs of an actor [P, F + 1] and of a central critic [P, F + 3 + A], f32.

    The features are those of bars spread over the given ones, and random ones around; all else is
    drawn from its range.
    """
    rng = np.random.default_rng(0)
    rows = np.linspace(0, len(raw_features) - 1, BARS).round().astype(int)
    around = scaler.mean + 2 * scaler.scale * rng.standard_normal((RANDOM, len(scaler.mean)))
    features = np.concatenate([raw_features[rows], around])
    position, drawdown, left, *roles = rng.uniform(
        [-1, 0, 0, *[-1] * agents], [1, 0.5, 1, *[1] * agents], (BARS + RANDOM, 3 + agents)
    ).T
    own = np.column_stack([features, roles[0]])
    everything = np.column_stack([features, position, drawdown, left, *roles])
    return own.astype(np.float32), everything.astype(np.float32)


def answers(
    config: Config, nets: Networks, scaler: Scaler, own: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what every agent makes of the same raw inputs by Flax.

    Args:
        config: of the program.
        nets: of a team.
        scaler: of their features.
        own: [P, O] f32, of an actor.
        seen: [P, I] f32, of a critic.

    Returns:
        [P, A, K] logits without mask and [P, A] values in bp.
    """
    logits, values = _flax(config, nets, *_scaled(scaler, own, seen))
    return np.asarray(logits), np.asarray(values)


def _scaled(scaler: Scaler, *inputs: np.ndarray) -> Iterator[Array]:
    """Scale the features of each as `env.core.observe` does."""
    for x in inputs:
        mean, scale = (jnp.asarray(moment, jnp.float32) for moment in scaler.padded(x.shape[1]))
        yield (jnp.asarray(x) - mean) / scale


@partial(jax.jit, static_argnames="config")
def _flax(config: Config, nets: Networks, own: Array, seen: Array) -> tuple[Array, Array]:
    """Return what every agent makes of the same inputs: [P, A, K] logits, [P, A] values in bp."""
    actors, actions = len(config.system.agents), len(config.system.actions)

    def each(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (len(x), actors, x.shape[1]))

    legal = jnp.ones((len(own), actors, actions), bool)
    values = networks.values(config, nets.critic, seen if config.central else each(seen))
    return (
        networks.masked_logits(config, nets.actor, each(own), legal),
        value_norm.denormalise(nets.value_norm, values),
    )
