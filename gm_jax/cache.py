"""Compiled programs, kept between processes: the second start of a program need not compile it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


keep_executables = False  # also what takes no tracing to find, see `run.executables`


# JAX keeps by default only what took a second to compile; a run has dozens of smaller programs
_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def enable() -> None:
    """Let JAX keep compiled programs in the user's cache directory.

    JAX's own variables win: JAX_COMPILATION_CACHE_DIR names another directory,
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Where the directory cannot be made there
    is none.
    """
    try:
        directory().mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # JAX would warn of every single program
    options = {"jax_compilation_cache_dir": str(directory()), **_ALL}
    fresh = {name: value for name, value in options.items() if name.upper() not in os.environ}
    for name, value in fresh.items():
        os.environ[name.upper()] = str(value)  # for this process and for those it starts
    if "jax" in sys.modules:  # which has read the variables already
        import jax

        for name, value in fresh.items():
            jax.config.update(name, value)


def directory() -> Path:
    """Return where compiled programs are kept by default."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "gm_jax" if base else Path.home() / ".cache" / "gm_jax"


@contextmanager
def options(**values: Any) -> Iterator[None]:
    """Let JAX's cache have other options inside, in every thread.

    Args:
        values: by their names in `jax.config`.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    def use(chosen: dict[str, Any]) -> None:
        for name, value in chosen.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX decides once whether, and where, it has one

    before = {name: jax.config.values[name] for name in values}
    try:
        use(values)
        yield
    finally:
        use(before)
