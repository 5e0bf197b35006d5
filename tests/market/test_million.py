"""A million bars from a file to the device, in a process of their own."""

import json
import subprocess
import sys

import pytest


WRITE = """
import sys
from gm_jax.market import synthetic, writing

bars = synthetic.generate("martingale", bars=1_000_000, minutes=5, seed=1).bars
writing.write_csv(bars, sys.argv[1])
"""
READ = """
import json, resource, sys, time
from gm_jax.env.arrays import build_market
from gm_jax.market import loader
from gm_jax.systems import TACTICAL

began = time.perf_counter()
bars, report = loader.load(sys.argv[1], 5)
market = build_market(bars, TACTICAL.settings, TACTICAL.team, (0, 700_000), 1_000)
market.bars.block_until_ready()
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "rows": report.rows_read,
    "bars": len(bars),
    "shape": market.bars.shape,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    "seconds": time.perf_counter() - began,
}))
"""


@pytest.mark.slow
def test_a_million_bars_fit_into_a_small_machine(tmp_path):
    """Read by another process than writes them: only of reading the memory is promised."""

    def done(script):
        command = [sys.executable, "-c", script, str(tmp_path / "bars.csv")]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    done(WRITE)
    found = json.loads(done(READ))
    print(f"{found['seconds']:.1f} s, {found['peak'] / 1e9:.2f} GB")
    assert (found["rows"], found["bars"], found["shape"]) == (1_000_000, 1_000_000, [1_000_000, 6])
    assert found["peak"] < 1e9
