"""What the tests of whole runs share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick(quick_compiler):
    """Compile all of them in less time."""
