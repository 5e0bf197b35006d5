"""The tables of benchmarks/learning.md: full networks, eight seeds, two hours on two cores."""

import json

import numpy as np
import pytest

from gm_jax.run import training
from gm_jax.run.source import Source
from gm_jax.systems import STRATEGIC, TACTICAL


FULL = {
    "tactical": (TACTICAL, {"num_episodes": 32}),
    "strategic": (
        STRATEGIC,
        {**STRATEGIC.quick, "num_episodes": 30, "hidden_sizes": (512, 512, 256), "layer_norm": 2},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
@pytest.mark.usefixtures("optimised")
def test_full_networks_reach_the_oracle_on_planted(tmp_path, name):
    """Mean share of the oracle's after-cost test Sharpe over seeds of world and networks."""
    system, changes = FULL[name]
    shares = []
    for seed in range(8):
        settings = system.settings.replace(**changes, seed=seed)
        source = Source(market="planted", seed=seed)
        training.train(training.start(system, settings, source, tmp_path / str(seed)))
        results = json.loads((tmp_path / str(seed) / "validation_results.json").read_text())
        test = results["splits"]["test"]
        shares.append(test["sharpe_ratio"] / test["oracle_sharpe"])
    print(np.round(shares, 3))
    assert np.mean(shares) > 0.85
