"""Act on raw states outside of any environment, with the networks of a team."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.env.team import start
from gm_jax.env.types import Array
from gm_jax.env.units import env_params
from gm_jax.errors import UserError
from gm_jax.mappo import networks, value_norm
from gm_jax.mappo.scaling import Scaler
from gm_jax.mappo.types import Config, Networks


# position over its maximum, by the role values: D − (D − p); the strategic team holds its D
POSITION = {"tactical": (1.0, 0.0, -1.0), "strategic": (1.0, 0.0, 0.0)}


def act(
    nets: Networks,
    scaler: Scaler,
    config: Config,
    states: Any,
    agent: int | None,
    key: Array | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return actions, their log-probabilities and values in bp, without masks.

    Args:
        nets: of the team.
        scaler: of their features.
        config: of the program.
        states: [A, O] or [B, A, O], raw features and role value; of one agent [O] or [B, O].
        agent: whose states they are; None for all.
        key: to draw the actions; None takes the likeliest.

    Returns:
        [A] or [B, A] i32 and twice f32; of one agent [] or [B].

    Raises:
        UserError: states of another shape, or that are not finite.
    """
    inputs = len(scaler.mean) + 1
    rows, batched = _rows(states, config, inputs, agent)
    count = len(rows)
    wide = np.pad(rows, [(0, (1 << (count - 1).bit_length()) - count), (0, 0), (0, 0)], mode="edge")
    mean, scale = (jnp.asarray(x, jnp.float32) for x in (scaler.mean, scaler.scale))
    found = jax.device_get(_decide(nets, jnp.asarray(wide), mean, scale, key, config))
    actions, log_probs, values = (
        (x if agent is None else x[:, agent])[slice(count) if batched else 0] for x in found
    )
    return actions, log_probs, values


def _rows(states: Any, config: Config, inputs: int, agent: int | None) -> tuple[np.ndarray, bool]:
    """Return the states of all agents, [B, A, O] f32, and whether they were given as a batch."""
    agents = config.system.agents
    own = (inputs,) if agent is not None else (len(agents), inputs)
    if agent is not None and not 0 <= agent < len(agents):
        raise UserError(f"agent_idx is {agent}, expected 0 to {len(agents) - 1}.")
    try:
        found = np.asarray(states, np.float32)
    except (TypeError, ValueError):  # rows of different lengths, or no numbers
        found = np.empty(0, np.float32)
    if found.shape[-len(own) :] != own or found.ndim > len(own) + 1 or not found.size:
        wanted = ", ".join(map(str, own))
        raise UserError(
            f"The states have the shape {list(np.shape(found))}, expected [{wanted}] or "
            f"[B, {wanted}]: {inputs - 1} raw features and the role value"
            f"{'' if agent is not None else f' of each of {len(agents)} agents'}."
        )
    if not np.isfinite(found).all():
        raise UserError("The states hold NaN or infinity; features have none after their warm-up.")
    batched = found.ndim > len(own)
    found = found if batched else found[None]
    if agent is None:
        return found, batched
    every = np.repeat(found[:, None], len(agents), axis=1)
    every[..., -1] = _roles_at_start(config)
    every[:, agent] = found
    return every, batched


def _roles_at_start(config: Config) -> np.ndarray:
    """Return the role values of a flat account with fresh controls, [A] f32."""
    team, settings = config.system.team, config.system.settings
    params = env_params(settings, settings.episode_length)
    return np.asarray(team.role_values(start(jnp.int32(0), params, team), params))


@partial(jax.jit, static_argnames="config")
def _decide(
    nets: Networks, states: Array, mean: Array, scale: Array, key: Array | None, config: Config
) -> tuple[Array, Array, Array]:
    """Return actions, log-probabilities and values of [B, A, O] states, [B, A] each."""
    features, roles = (states[..., :-1] - mean) / scale, states[..., -1]
    obs = jnp.concatenate([features, roles[..., None]], axis=-1)
    every = jnp.ones((*roles.shape, len(config.system.actions)), bool)
    logits = networks.masked_logits(config, nets.actor, obs, every)
    action = jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits)
    log_prob, _ = networks.log_probs(logits, action)
    seen = _everything(features[:, 0], roles, config) if config.central else obs
    values = value_norm.denormalise(nets.value_norm, networks.values(config, nets.critic, seen))
    return action.astype(jnp.int32), log_prob, values


def _everything(features: Array, roles: Array, config: Config) -> Array:
    """Return what the central critic sees, [B, G]: no drawdown, the whole window left."""
    position = (roles * jnp.float32(POSITION[config.system.name])).sum(-1)
    book = jnp.stack([position, jnp.zeros_like(position), jnp.ones_like(position)], axis=-1)
    return jnp.concatenate([features, book, roles], axis=-1)
