"""What the tests of whole runs share."""

from __future__ import annotations

import pytest

from gm_jax.report import figures


@pytest.fixture(scope="module", autouse=True)
def quick(quick_compiler):
    """Compile all of them in less time, and lay no picture out: tests/report looks at those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "ConstrainedLayoutEngine", lambda **_: "none")
        yield
