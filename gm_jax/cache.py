"""Compiled programs, kept between processes: the second start of a program need not compile it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


# JAX keeps by default only what took a second to compile; a run has dozens of smaller programs
_DEFAULTS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def enable() -> None:
    """Let JAX keep compiled programs in the user's cache directory.

    JAX's own variables win: JAX_COMPILATION_CACHE_DIR names another directory,
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    variables = {"JAX_COMPILATION_CACHE_DIR": str(directory()), **_DEFAULTS}
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    if "jax" in sys.modules:  # it has read them already
        _tell_jax({name: os.environ[name] for name in variables})


def _tell_jax(variables: Mapping[str, str]) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    for name, value in variables.items():
        option = name.lower()
        kind = str if name.endswith("DIR") else type(jax.config.values[option])
        jax.config.update(option, kind(value))
    compilation_cache.reset_cache()  # it may have found none before


def directory() -> Path:
    """Return where compiled programs are kept by default."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "gm_jax" if base else Path.home() / ".cache" / "gm_jax"
