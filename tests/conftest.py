"""Fixtures that every test may use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import pytest
from jax._src import compiler

from gm_jax import cache


DATA = Path(os.environ.get("GM_JAX_DATA") or Path(__file__).parents[2] / "shared" / "data")


_CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    """Share compiled programs among the tests' processes, and with nobody else."""
    if not hasattr(config, "workerinput"):  # the first process; the others inherit it
        config.compiled = os.environ[_CACHE] = tempfile.mkdtemp(prefix="gm_jax_compiled_")
    cache.enable()


def pytest_unconfigure(config):
    """Forget them."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.compiled, ignore_errors=True)


QUICK = "jax_disable_most_optimizations"
# XLA's newer code generator for CPUs takes twice as long; long training is .97 as fast without
OLDER = "xla_cpu_use_fusion_emitters"
HASTE = {  # of a process; its programs are not those that this one keeps in the cache
    QUICK.upper(): "1",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --{OLDER}=false".strip(),
}
USUAL = {name: os.environ.get(name) for name in HASTE}


@contextmanager
def in_haste() -> Iterator[None]:
    """Compile in less time inside; what runs after it is compiled anew, as users do.

    For runs so short that what is compiled hardly matters. What optimised programs compute to the
    last bit is held to other computations in tests/env and tests/deploy, how they learn in
    tests/mappo/test_probes.py and under `optimised`.
    """
    jax.devices()  # this process has read its flags; what is set below is for those it starts
    usual = compiler.get_compile_options  # there is no public way to set options of all programs
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASTE.items():
            patch.setenv(name, value)
        patch.setattr(compiler, "get_compile_options", partial(_with_older, usual))
        jax.config.update(QUICK, True)
        try:
            yield
        finally:
            jax.config.update(QUICK, False)
            jax.clear_caches()


def _with_older(usual, *args, env_options_overrides=None, **kwargs):
    options = {OLDER: False, **(env_options_overrides or {})}
    return usual(*args, env_options_overrides=options, **kwargs)


@pytest.fixture(scope="module")
def quick_compiler():
    """Compile in less time throughout a module."""
    with in_haste():
        yield


@pytest.fixture
def optimised(quick_compiler, monkeypatch):
    """Compile as users do, where a test trains for long."""
    for name, value in USUAL.items():  # of the processes that it starts
        monkeypatch.delenv(name)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(compiler, "get_compile_options", compiler.get_compile_options.args[0])
    jax.config.update(QUICK, False)
    jax.clear_caches()
    yield
    jax.config.update(QUICK, True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real market files, which are not part of the repository."""
    if not list(DATA.glob("NQ - *.csv")):
        pytest.skip(f"no real market files in {DATA}; set GM_JAX_DATA to their folder")
    return DATA
