"""The compiled training program, kept between processes: a second start need not trace it either.

JAX's own cache is asked for what has been traced and lowered, which takes a third of a start. Here
the program is found by all that it is made of: this package's sources, the shapes of its arguments,
its static configuration, and what compiles it. Code that a process changes while it runs is not
among them; so only the command `gm-jax`, which runs no code but the package's, keeps programs in
this way (`cache.keep_executables`), and only for one CPU, where it has been tried.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

import gm_jax
from gm_jax import cache, doctor
from gm_jax.mappo.types import Config
from gm_jax.run.progress import say


LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def _digest_of_sources() -> str:
    found = hashlib.sha256()
    folder = Path(gm_jax.__file__).parent
    # an editor's lock is a link to no file
    for path in sorted(path for path in folder.rglob("*.py") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


SOURCES = _digest_of_sources()  # as they are when they are imported


def compiled(
    config: Config, arguments: Any, lower: Callable[[], jax.stages.Lowered]
) -> jax.stages.Compiled:
    """Return the program as it was kept, or compile it and keep it.

    Args:
        config: what it is specialised for.
        arguments: arrays on the device that it is for; with `config` they settle the shapes and
            types of all its arguments.
        lower: traces and lowers it.
    """
    (device,) = jax.tree.leaves(arguments)[0].devices()
    folder = _folder(device) if config.mesh is None else None
    if folder is None:
        return lower().compile()
    path = folder / f"gm_jax-{_key(config, arguments, device)}"
    if (found := _load(path, device)) is not None:
        return found
    lowered = lower()
    # what JAX has loaded from its own cache serialises without the functions that it calls
    with cache.options(jax_enable_compilation_cache=False):
        program = lowered.compile()
    _keep(path, program)
    return program


def _folder(device: jax.Device) -> Path | None:
    """Return where programs for a device are kept; None where they are not."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    kept = (
        cache.keep_executables
        and jax.config.values["jax_enable_compilation_cache"]
        and device.platform == "cpu"
        and _processor()
        and jax.process_count() == 1
        # the name of a file with flags would not tell what they are
        and (os.environ.get("XLA_FLAGS", "").strip() or "-").startswith("-")
    )
    # a bucket's address is for JAX alone
    return Path(folder) if kept and folder and "://" not in folder else None


@functools.cache
def _processor() -> str:
    """Return what the processor can do, as the system says; "" where it says nothing."""
    info = Path("/proc/cpuinfo")
    names = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text().splitlines() if info.exists() else []
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _key(config: Config, arguments: Any, device: jax.Device) -> str:
    """Return a digest of all that the program is made of."""
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    leaves, tree = jax.tree.flatten(arguments)
    # but where files are kept
    options = {k: v for k, v in jax.config.values.items() if "cache" not in k}
    # XLA divides loops among as many threads as it has when it compiles
    threads = {k: os.environ.get(k) for k in ("PJRT_NPROC", "NPROC")}
    made_of = (
        own | {"system": config.system.name},
        (str(tree), [repr(leaf.aval) for leaf in leaves]),
        (device.id, device.client.platform_version, platform.machine(), _processor()),
        (doctor.cpu_count(), threads, os.environ.get("XLA_FLAGS"), options),
        (sys.version, [version(name) for name in LIBRARIES]),
        SOURCES,
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()


def _load(path: Path, device: jax.Device) -> jax.stages.Compiled | None:
    """Return a kept program; None where there is none that can be loaded."""
    try:
        payload, in_tree, out_tree = pickle.loads(zlib.decompress(path.read_bytes()))
        return serialize_executable.deserialize_and_load(
            payload, in_tree, out_tree, backend=device.client, execution_devices=[device]
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    # unpickling and XLA raise what they like
    except Exception as error:
        say(f"warning: {path} cannot be loaded, the program is compiled anew: {error}")
        return None


def _keep(path: Path, program: jax.stages.Compiled) -> None:
    """Write a program, whole or not at all; where that cannot be done, say so."""
    try:
        content = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), level=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="gm_jax-part-") as folder:
            part = Path(folder) / path.name
            part.write_bytes(content)
            part.replace(path)
    # nor is training to end where XLA cannot write a program that it can run
    except Exception as error:
        say(
            f"warning: the compiled program cannot be kept in {path.parent}, "
            f"the next start compiles it again: {error}"
        )
