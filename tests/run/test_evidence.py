"""The tables of benchmarks/learning.md: minutes to hours on two cores."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

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
    """Mean share of the oracle's after-cost test Sharpe over seeds of world and networks.

    The strategic system's targets, Sharpe ratio and drawdown, are met by every seed.
    """
    system, changes = FULL[name]
    shares, targets = [], []
    for seed in range(8):
        settings = system.settings.replace(**changes, seed=seed)
        source = Source(market="planted", seed=seed)
        training.train(training.start(system, settings, source, tmp_path / str(seed)))
        shares.append(share(tmp_path / str(seed)))
        targets.append(report(tmp_path / str(seed))["targets"])
        print(f"seed {seed}: share {shares[-1]:.3f}, {targets[-1]}", flush=True)
    print(np.round(shares, 3), f"mean {np.mean(shares):.3f} ± {stats.sem(shares):.3f}")
    assert np.mean(shares) > 0.85
    if name == "strategic":
        assert all(target["met"] for found in targets for target in found.values())


VARIANTS = {
    "one device": ({}, "float32"),
    "eight devices": ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, "float32"),
    "bfloat16": ({}, "bfloat16"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_no_loss_of_learning_is_seen_on_eight_devices_and_in_bfloat16(tmp_path):
    """On the same worlds from the same parameters.

    The paired 95 % interval that is printed says how large a one might have gone unseen.
    """
    shares = {name: [quick_share(tmp_path, name, seed) for seed in range(8)] for name in VARIANTS}
    for name, found in shares.items():
        gain = np.subtract(found, shares["one device"])
        print(name, np.round(found, 3), f"mean {np.mean(found):.3f}")
        assert np.mean(found) > 0.75
        if gain.any():
            bounds = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
            print("against one device", np.round(gain.mean(), 3), np.round(bounds, 3))
            assert bounds[1] > 0


def quick_share(folder, name, seed):
    """Return the share of the oracle that a quick run, in a process of its own, comes to."""
    (environment, precision), out = VARIANTS[name], folder / f"{name}-{seed}"
    program = [sys.executable, "-m", "gm_jax", "train", "tactical", "--preset", "quick"]
    flags = ["--market", "planted", "--seed", str(seed), "--set", f"precision={precision}"]
    subprocess.run([*program, *flags, "--out", out], env=os.environ | environment, check=True)
    return share(out)


def share(out):
    """Return the share of the oracle's after-cost test Sharpe ratio that a run came to."""
    test = report(out)
    return test["sharpe_ratio"] / test["oracle_sharpe"]


def report(out):
    """Return what a run's results say of the test split."""
    return json.loads((out / "validation_results.json").read_text())["splits"]["test"]
