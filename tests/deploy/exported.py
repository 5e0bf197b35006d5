"""Runs whose teams trade, exported: what the deployment's tests are held against."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gm_jax import cli
from gm_jax.run import evaluation, pictures
from tests.conftest import in_haste


# even odds at the start, and they stay: a team that is hardly trained trades all the time
TINY = {
    "hidden_sizes": "[16,16]",
    "num_envs": "8",
    "episode_length": "100",
    "rollout_length": "50",
    "num_minibatches": "2",
    "num_episodes": "2",
    "num_epochs": "1",
    "lr_actor": "0.000001",
}
EVEN = {"tactical": "0.2", "strategic": "0.14"}

# what a deployed model must do without
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"gm_jax", "jax", "jaxlib", "flax", "optax", "matplotlib"}:
            raise ModuleNotFoundError(f"{name} is not part of a deployment")
sys.meta_path.insert(0, Blocked())
"""


def flags(settings: dict[str, str]) -> list[str]:
    """Return settings as arguments of the command line."""
    return [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]


def train(system: str, out: Path, *source: str, **settings: str) -> Path:
    """Train a team for moments, which exports it."""
    settings = TINY | {"initial_neutral": EVEN[system]} | settings
    with in_haste(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda *_: None)
        patch.setattr(evaluation, "contributions", lambda *_: {})
        assert cli.main(["train", system, "--out", str(out), *source, *flags(settings)]) == 0
    return out


def gappy_csv(path: Path, minutes: int, bars: int, seed: int) -> Path:
    """Write a generated market with a hole, bars without volume and rolls."""
    plain = path.with_name("plain.csv")
    synth = ["data", "synth", "--market", "realistic", "--bars", str(bars), "--seed", str(seed)]
    assert cli.main([*synth, "--minutes", str(minutes), "--out", str(plain)]) == 0
    frame = pd.read_csv(plain)
    frame.loc[frame.index[::97], "Volume"] = 0
    prices = ["Open", "High", "Low", "Close"]
    for k in range(1, 9):  # such jumps inside a session are rolls
        frame.loc[frame.index >= k * bars // 9 + 7, prices] += 200.0 * (-1) ** k
    kept = frame.drop(frame.index[bars // 3 : bars // 3 + 5])
    kept.to_csv(path, index=False)
    return path


def run_program(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `deploy_model.py` in a process that has neither JAX nor gm_jax."""
    code = f"{BLOCKED}\nimport runpy\nrunpy.run_path('deploy_model.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
