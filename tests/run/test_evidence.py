"""The learning table of README: full networks, eight seeds; about an hour on two cores."""

import json

import numpy as np
import pytest

from gm_jax.run import training
from gm_jax.run.source import Source
from gm_jax.systems import TACTICAL


@pytest.mark.slow
def test_full_networks_reach_the_oracle_on_planted(tmp_path):
    """Mean share of the oracle's after-cost test Sharpe over seeds of world and networks."""
    shares = []
    for seed in range(8):
        settings = TACTICAL.settings.replace(num_episodes=32, seed=seed)
        source = Source(market="planted", seed=seed)
        training.train(training.start(TACTICAL, settings, source, tmp_path / str(seed)))
        results = json.loads((tmp_path / str(seed) / "validation_results.json").read_text())
        test = results["splits"]["test"]
        shares.append(test["sharpe_ratio"] / test["oracle_sharpe"])
    print(np.round(shares, 3))
    assert np.mean(shares) > 0.85
