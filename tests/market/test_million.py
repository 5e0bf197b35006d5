"""A million bars from a file to the device, in a process of their own."""

import json
import subprocess
import sys

import pytest


SCRIPT = """
import json, resource, sys
from gm_jax.env.arrays import build_market
from gm_jax.market import loader, synthetic, writing
from gm_jax.systems import TACTICAL

path, n = sys.argv[1], 1_000_000
writing.write_csv(synthetic.generate("martingale", bars=n, minutes=5, seed=1).bars, path)
bars, report = loader.load(path, 5)
market = build_market(bars, TACTICAL.settings, TACTICAL.team, (0, n * 7 // 10), 1_000)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "rows": report.rows_read,
    "bars": len(bars),
    "shape": market.bars.shape,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
}))
"""


@pytest.mark.slow
def test_a_million_bars_fit_into_a_small_machine(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "bars.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["rows"], found["bars"], found["shape"]) == (1_000_000, 1_000_000, [1_000_000, 6])
    assert found["peak"] < 1.5e9
