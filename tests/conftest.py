"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


DATA = Path(os.environ.get("GM_JAX_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real market files, which are not part of the repository."""
    if not list(DATA.glob("NQ - *.csv")):
        pytest.skip(f"no real market files in {DATA}; set GM_JAX_DATA to their folder")
    return DATA
