"""What the tests of whole runs share."""

from __future__ import annotations

import jax
import pytest


QUICK = "jax_disable_most_optimizations"


@pytest.fixture(scope="package", autouse=True)
def quick_compiler():
    """Compile in less time: these runs are so short that what is compiled hardly matters.

    What is computed to the last bit by optimised programs is held to other computations in
    tests/env and tests/deploy.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(QUICK.upper(), "1")  # of the processes that tests start
        jax.config.update(QUICK, True)
        yield
        jax.config.update(QUICK, False)


@pytest.fixture
def optimised(quick_compiler):
    """Compile as users do, where a test trains for long."""
    jax.config.update(QUICK, False)
    yield
    jax.config.update(QUICK, True)
