"""What a trainer is made of: its settings, under old names too, and its device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax

from gm_jax import doctor
from gm_jax.config import change
from gm_jax.errors import UserError
from gm_jax.settings import Settings
from gm_jax.systems import System


# what the PyTorch trainers called it: our setting
OLD_NAMES = {"batch_size": "num_envs", "eps_clip": "clip_eps", "k_epochs": "num_epochs"}


def settings_of(system: System, given: Mapping[str, Any]) -> Settings:
    """Return a system's settings with what was given; None leaves the default.

    Where `num_minibatches` is not given, it is the largest up to its default that divides a
    rollout of `num_envs` environments.

    Args:
        system: whose defaults hold.
        given: settings by their names or by `OLD_NAMES`.

    Raises:
        UserError: unknown names, values no run could use, or two names of one setting at odds.
    """
    changes: dict[str, Any] = {}
    for name, value in given.items():
        key = OLD_NAMES.get(name, name)
        if value is None:
            continue
        if key in changes and changes[key] != value:
            raise UserError(
                f"`{name}` is another name of `{key}`, and they differ: {value!r} and "
                f"{changes[key]!r}. Give one of them."
            )
        changes[key] = value
    where = f"the {system.name} trainer"
    if "num_minibatches" in changes:
        return change(system.settings, changes, where)
    whole = change(system.settings, {**changes, "num_minibatches": 1}, where)
    samples, most = whole.num_envs * whole.rollout_length, system.settings.num_minibatches
    fitting = max(count for count in range(1, most + 1) if samples % count == 0)
    return whole.replace(num_minibatches=fitting)


def require_sizes(
    system: System,
    settings: Settings,
    state_dim: int | None,
    action_dim: int | None,
    n_agents: int | None,
) -> None:
    """Refuse sizes that are not those of the system and its features.

    Raises:
        UserError: one of them is another; None is none.
    """
    inputs = len(settings.features) + 1
    if state_dim not in (None, inputs):
        raise UserError(
            f"state_dim is {state_dim}, but {len(settings.features)} features and the agent's role "
            f"value make {inputs}. Name state_dim - 1 features, e.g. features="
            f"{[*settings.features[:2], '…']!r}; `gm_jax.market.features.describe()` lists them. "
            "Or leave state_dim out."
        )
    for name, found, wanted in (
        ("action_dim", action_dim, system.actions),
        ("n_agents", n_agents, system.agents),
    ):
        if found not in (None, len(wanted)):
            raise UserError(
                f"{name} is {found}, but the {system.name} team has {len(wanted)}: "
                f"{', '.join(wanted)}. They are fixed; leave {name} out."
            )


def find_device(name: str | None) -> jax.Device | None:
    """Return the device that a name stands for; None where that is JAX's own choice.

    Args:
        name: `cuda` or `gpu`, with a number behind a colon if wanted, `cpu`, or None.

    Raises:
        UserError: no such device, or a GPU that JAX does not see.
    """
    if name is None:
        return None
    kind, _, number = str(name).lower().partition(":")
    if kind not in ("cuda", "gpu", "cpu") or not (number or "0").isdecimal():
        raise UserError(f"device is {str(name)!r}, expected 'cuda' (or 'gpu'), 'cpu' or None.")
    platform = "cpu" if kind == "cpu" else _gpu_or_cpu(str(name))
    found = jax.devices(platform)
    if platform != "cpu" and int(number or 0) >= len(found):
        raise UserError(f"device is {str(name)!r}, but JAX sees {len(found)} of that kind.")
    device = found[int(number or 0) if platform != "cpu" else 0]
    return None if device == jax.devices()[0] else device


def _gpu_or_cpu(name: str) -> str:
    """Return `gpu` where JAX sees one, otherwise warn and return `cpu`."""
    if jax.default_backend() in doctor.GPU_PLATFORMS:
        return "gpu"
    versions = {x: doctor.installed_version(x) for x in ("jaxlib", *doctor.PLUGINS)}
    unseen = doctor.unseen_gpu(doctor.nvidia_gpus(), doctor.jax_devices(), versions)
    if unseen is not None:
        raise UserError(f"{unseen} Or train on the CPU by device='cpu'.")
    warnings.warn(f"device={name!r}: no NVIDIA GPU here, training runs on the CPU.", stacklevel=4)
    return "cpu"
