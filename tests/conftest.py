"""Fixtures that every test may use."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

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


@pytest.fixture(scope="module")
def quick_compiler():
    """Compile in less time, for runs so short that what is compiled hardly matters.

    What optimised programs compute to the last bit is held to other computations in tests/env and
    tests/deploy, how they learn in tests/mappo/test_probes.py and under `optimised`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(QUICK.upper(), "1")  # of the processes that tests start
        jax.config.update(QUICK, True)
        yield
        jax.config.update(QUICK, False)


@pytest.fixture
def optimised(quick_compiler, monkeypatch):
    """Compile as users do, where a test trains for long."""
    monkeypatch.delenv(QUICK.upper())  # of the processes that it starts
    jax.config.update(QUICK, False)
    yield
    jax.config.update(QUICK, True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real market files, which are not part of the repository."""
    if not list(DATA.glob("NQ - *.csv")):
        pytest.skip(f"no real market files in {DATA}; set GM_JAX_DATA to their folder")
    return DATA
