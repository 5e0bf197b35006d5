"""The record of a sweep: what sweep.json says was asked for, and the sweep rebuilt from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gm_jax.config import change
from gm_jax.errors import UserError
from gm_jax.run.directory import SCHEMA_VERSION, SWEEP, to_json
from gm_jax.run.record import absolute
from gm_jax.run.source import Source
from gm_jax.run.sweep_plan import Group, Plan, groups, value_of
from gm_jax.systems import System


def asked(plan: Plan, parts: Sequence[Group]) -> dict[str, Any]:
    """Return what sweep.json says before anything is trained."""
    setups = {n: one for part in parts for n, one in zip(part.numbers, part.setups, strict=True)}
    chosen = [
        {key: value_of(setups[n].settings, key) for key in plan.grid} for n in range(len(setups))
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": version("gm-jax"),
        "system": plan.system.name,
        "finished": False,
        "asked": {
            "grid": {k: _distinct([one[k] for one in chosen]) for k in plan.grid},
            "seeds": plan.seeds,
            "settings": plan.base.to_json(),
            "source": asdict(absolute(plan.source)),
        },
        "programs": _programs(parts),
        "members": [
            {
                "member": n * plan.seeds + seed,
                "setting": n,
                "seed": plan.base.seed + seed,
                "settings": chosen[n],
            }
            for n in range(len(setups))
            for seed in range(plan.seeds)
        ],
    }


def _programs(parts: Sequence[Group]) -> list[dict[str, Any]]:
    """Return which settings each program trains, and on what."""
    return [
        {
            "settings": part.numbers,
            "data_sha256": part.setups[0].loaded.digest,
            "mandate_sha256": part.setups[0].loaded.mandate_digest,
        }
        for part in parts
    ]


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Return each value once, in order; lists have no hash."""
    return [value for n, value in enumerate(values) if value not in values[:n]]


def read(path: Path, system: System) -> tuple[Plan, list[Group], dict[str, Any]]:
    """Return plan, programs and content of a sweep; a finished one needs no programs.

    Raises:
        UserError: it cannot be read, is of another system or version, or its bars have changed.
    """
    file = path / SWEEP
    try:
        content = json.loads(file.read_text())
        _require_same(path, content, system)
        wanted = content["asked"]
        base = change(system.settings, wanted["settings"], str(file))
        plan = Plan(system, base, wanted["grid"], wanted["seeds"], Source(**wanted["source"]))
        done = content["finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not what `gm-jax sweep` writes ({error!r}).") from error
    parts = [] if done else groups(plan)
    if not done and json.loads(to_json(_programs(parts))) != content["programs"]:
        raise UserError(
            f"The bars of {plan.source.label} are not what {path} was begun with; put the original "
            "ones back, or begin a new sweep."
        )
    return plan, parts, content


def _require_same(path: Path, content: Mapping[str, Any], system: System) -> None:
    if content["system"] != system.name:
        name = content["system"]
        raise UserError(f"{path} is a {name} sweep: gm-jax sweep {name} --resume {path}")
    found, now = (
        (content["code_version"], content["schema_version"]),
        (version("gm-jax"), SCHEMA_VERSION),
    )
    if found != now:
        raise UserError(
            f"{path} was begun by gm-jax {found[0]} (schema {found[1]}), this is {now[0]} (schema "
            f"{now[1]}): install that version to go on with it, or begin a new sweep."
        )
