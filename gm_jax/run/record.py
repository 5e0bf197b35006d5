"""The record of a run: what model_config.json says, and the run rebuilt from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gm_jax.config import change
from gm_jax.errors import UserError
from gm_jax.market import features, regimes
from gm_jax.market.data_report import iso
from gm_jax.run.directory import SCHEMA_VERSION, RunDirectory
from gm_jax.run.mandate import load_all
from gm_jax.run.setup import Setup, prepare
from gm_jax.run.source import Source
from gm_jax.systems import SYSTEMS


BARS = "bars.csv"  # in the directory of a run that was given no file


def model_config(setup: Setup, source: Source) -> dict[str, Any]:
    """Return everything needed to repeat the run or to use its networks."""
    bars, settings = setup.loaded.bars, setup.settings
    span = {name: setup.split[name] for name in ("train", "validation", "test")}
    labels = [*settings.features, regimes.labelling(setup.system.minutes)]
    dates = {
        name: {
            "bars": [first, end],
            "first": iso(bars.time[first]),
            "last": iso(bars.time[end - 1]),
        }
        for name, (first, end) in span.items()
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": version("gm-jax"),
        "system": setup.system.name,
        "bar_minutes": setup.system.minutes,
        "agents": setup.system.agents,
        "actions": setup.system.actions,
        "features": features.describe(settings.features),
        "scaler": {"mean": np.asarray(setup.market.mean), "scale": np.asarray(setup.market.scale)},
        "warmup_bars": setup.warmup,
        "unlabelled_bars": {
            name: regimes.unlabelled(length, len(bars))
            for name, length in regimes.windows(labels).items()
        },
        "episode_length": setup.episode_length,
        "settings": settings.to_json(),
        "source": asdict(absolute(source)),
        "data": setup.loaded.report,
        "data_sha256": setup.loaded.digest,
        "mandate_sha256": setup.loaded.mandate_digest,
        "split": dates,
        "warnings": setup.warnings,
    }


def absolute(source: Source) -> Source:
    """Return the source with paths that hold from any folder."""

    def whole(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path else path

    return replace(source, data=whole(source.data), strategic=whole(source.strategic))


def reopen(directory: RunDirectory) -> tuple[Setup, Source]:
    """Rebuild the setup of a run from its model_config.json, see `rebuild`."""
    return rebuild(directory.config(), directory.path)


def rebuild(config: Mapping[str, Any], path: Path | str) -> tuple[Setup, Source]:
    """Rebuild the setup of a run from what `model_config` said of it.

    Args:
        config: see `model_config`.
        path: the run's directory, or what it is called where there is none.

    Raises:
        UserError: its data are gone or are not what it was trained on.
    """
    if config["system"] not in SYSTEMS:
        raise UserError(
            f"{path} is of the system {config['system']!r}, this gm-jax has {', '.join(SYSTEMS)}."
        )
    system = SYSTEMS[config["system"]]
    settings = change(system.settings, config["settings"], str(path))
    try:
        source = Source(**config["source"])
    except TypeError as error:
        raise UserError(f"The source in {path}/model_config.json: {error}.") from error
    if source.data and Path(source.data).name == BARS and (Path(path) / BARS).is_file():
        source = replace(source, data=str(Path(path) / BARS))  # wherever that was moved to
    loaded = load_all(source, settings, system.minutes)
    if loaded.digest != config["data_sha256"]:
        mend = (
            "put the original file back"
            if source.data
            else "put source, market_bars and market_parameters in model_config.json back"
        )
        raise UserError(
            f"{source.label} is not what this run was trained on (SHA-256 {loaded.digest[:12]}…, "
            f"expected {config['data_sha256'][:12]}…); {mend}."
        )
    if loaded.mandate_digest != config.get("mandate_sha256"):
        raise UserError(
            f"The strategic run {source.strategic} no longer decides as it did when this run was "
            "trained: it was trained on, or is on another machine. Put it back as it was, or train "
            "anew with it."
        )
    return prepare(system, settings, loaded), source
