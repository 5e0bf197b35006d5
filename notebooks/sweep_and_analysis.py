# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sweep settings, and read the best run
#
# Which settings learn best, and is the best more than the luckiest of many? A grid of settings,
# each with several seeds, trains side by side in few compiled programs. Run all cells: without any
# file eight teams train for half of the quick preset on `planted`, a generated and **easy** market,
# in a few minutes on a CPU. On a real market expect far less.

# %% tags=["parameters"]
REPOSITORY = ""  # Colab: address of the git repository that this notebook is from
USE_DRIVE = False  # Colab: keep sweeps on Google Drive
RUNS = "exports"  # folder of the sweep directories, without Drive
RESUME = True  # go on with the newest sweep there that was cut off

SYSTEM = "tactical"  # or "strategic"
CSV = ""  # path of a file of bars; empty: the generated market
CSV_OPTIONS = {}  # what the check cannot find out, e.g. {"date_format": "day-first"}
MARKET = "planted"

PRESET = "quick"  # small networks, minutes on a CPU; "default" is for a GPU
SETTINGS = {"num_episodes": 16}  # of every member, any of configs/training_config.yaml
GRID = {"lr_actor": [1e-4, 3e-4], "clip_eps": [0.1, 0.2]}
SEEDS = 2  # of each setting
SEED = 0  # the first of them, and that of the generated market

# %% [markdown]
# ## The machine
#
# Where gm_jax is missing, Colab installs it and leaves the packages it came with as they are. A GPU
# that JAX does not see is an error with its mend; a machine without one trains on the CPU.

# %%
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path


ON_COLAB = "google.colab" in sys.modules
KEPT = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pandas", "torch")

if getattr(importlib.util.find_spec("gm_jax"), "origin", None) is None:  # or a mere folder
    if not (ON_COLAB and REPOSITORY):
        raise RuntimeError(
            "gm_jax is not installed here. On Colab set REPOSITORY in the first cell to the "
            "address of its git repository, then run all cells again. Elsewhere run `pip install "
            "-e .` in its folder, with the Python of this notebook."
        )
    clone, pins = Path("gm_jax_source"), Path("colab_has.txt")
    if not clone.exists():
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(clone)], check=True)
    present = {x.name.lower(): x.version for x in importlib.metadata.distributions()}
    pins.write_text("".join(f"{x}=={present[x]}\n" for x in KEPT if x in present))
    install = [sys.executable, "-m", "pip", "install", "-q", "-c", str(pins), "-e", str(clone)]
    subprocess.run(install, check=True)
    sys.path.insert(0, str(clone.resolve()))
    importlib.invalidate_caches()

warnings.filterwarnings("ignore", message="IProgress not found")  # a plain bar is fine

from gm_jax import doctor


machine = doctor.examine()
if not machine["ok"]:
    raise RuntimeError("\n".join(machine["problems"]))
print(*machine["notes"], sep="\n")
if ON_COLAB and not machine["nvidia_gpus"]:
    print("For a GPU: Runtime → Change runtime type, then run all cells again.")

# %% [markdown]
# ## Train every member
#
# Learning rates, clipping, costs, limits and reward weights train side by side; sizes of networks
# or batches take a program for each value. Interrupt when you like, or lose the machine: the newest
# unfinished sweep in this folder goes on where it was last saved, with what it was asked for.

# %%
import json
from contextlib import redirect_stderr
from datetime import datetime

from gm_jax import cache
from gm_jax.config import change
from gm_jax.run import sweep
from gm_jax.run.source import Source
from gm_jax.run.sweep_plan import Plan, label
from gm_jax.systems import SYSTEMS


cache.enable()  # a second start need not compile again
runs = Path(RUNS)
if USE_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    runs = Path("/content/drive/MyDrive/gm_jax/exports")

system = SYSTEMS[SYSTEM]
begun = sorted(runs.glob(f"*-sweep-{SYSTEM}/sweep.json"), reverse=True)
cut_off = [file.parent for file in begun if not json.loads(file.read_text())["finished"]]
if RESUME and cut_off:
    found = sweep.resume(cut_off[0], system)
else:
    preset = {"quick": system.quick, "default": {}}[PRESET]
    base = change(system.settings, {**preset, "seed": SEED, **SETTINGS}, "SETTINGS")
    data = {"data": CSV, **CSV_OPTIONS} if CSV else {"market": MARKET, "seed": SEED}
    plan = Plan(system, base, GRID, SEEDS, Source(**data))
    found = sweep.start(plan, runs / f"{datetime.now():%Y%m%d-%H%M%S}-sweep-{SYSTEM}")

folder = found.directory.path
print(f"{folder}: {len(found.content['members'])} members")
with redirect_stderr(sys.stdout):
    summary = sweep.run(found)
if summary["best_run"] is None:
    raise RuntimeError("The sweep was interrupted: run this cell again to go on with it.")

# %% [markdown]
# ## The ranking
#
# Ranked by the mean score on validation over the seeds; test is told beside it and chose nothing.
# Look at the spread before the order: where seeds of one setting differ more than settings do, the
# ranking is noise, and more seeds are worth more than more settings. A Sharpe ratio is the mean of
# the seeds that traded; n/a says that none did.

# %%
import pandas as pd

from gm_jax.run.results import RESULTS, interval, number


pd.DataFrame(
    [
        {
            "setting": label(row["settings"]),
            "score": number(row["selection_score"]["mean"]),
            "deviation over seeds": number(row["selection_score"]["std"]),
            "least": number(row["selection_score"]["min"]),
            "most": number(row["selection_score"]["max"]),
            "validation Sharpe": number(row["validation_sharpe_ratio"]["mean"]),
            "test Sharpe": number(row["test_sharpe_ratio"]["mean"]),
            "broke down": row["failed"],
        }
        for row in summary["settings"]
    ],
    index=pd.Index([row["rank"] for row in summary["settings"]], name="rank"),
)

# %%
from IPython.display import Image, display


display(Image(filename=str(folder / "plots" / "sweep.png"), width=950))

# %% [markdown]
# ## How far to believe it
#
# The best of many looks good by chance alone. Two numbers charge for it:
#
# - **Deflated Sharpe ratio**: the probability that the true ratio is above zero, when the best of
#   that many tries on these bars would show some by luck. Below 0.95 nothing is shown.
# - **Probability of backtest overfitting** (pbo): how often the member that was best on half of the
#   sessions was no better than average on the other half. About 0.5 means that choosing among these
#   settings was a coin toss; near 0, that the order lasts. It takes eight members; on `planted`,
#   where all of them learn the same thing, it may be high although every one of them is good.
#
# An out-of-sample Sharpe ratio above 1.5 on real bars calls for a search for the leak.

# %%
best = next(row for row in summary["members"] if row["member"] == summary["best_member"])
print(f"best member: {label(best['settings'])}, seed {best['seed']}")
pd.DataFrame(
    {
        part: {
            "Sharpe ratio after costs": number(best[part]["sharpe_ratio"]),
            "95 % interval": interval(best[part]["sharpe_ci95"], 2),
            f"deflated by {best['n_trials']} trials": number(best[part]["deflated_sharpe"]),
            "pbo of the sweep": number(summary["pbo"][part]["value"]),
            "remark": best[part]["sharpe_reason"] or summary["pbo"][part]["reason"] or "",
        }
        for part in ("validation", "test")
    }
)

# %% [markdown]
# ## The best run
#
# `best/` is a run directory like any other: `gm-jax evaluate`, `gm-jax export` and `gm-jax train
# --resume` take it. Where was the money made? Regimes are those known at each bar's close.

# %%
run = folder / "best"
test = json.loads((run / RESULTS).read_text())["splits"]["test"]
pd.DataFrame(
    {
        name.replace("_", " ").lower(): {
            "share of bars": f"{found['share']:.0%}",
            "net P&L, USD": f"{found['net_pnl']:,.0f}",
            "mean, bp a bar": number(found["mean_bp"]),
            "contracts held": number(found["contracts"]),
        }
        for name, found in test["per_regime"].items()
    }
).T

# %% [markdown]
# Who earned it? The team's result, less that of the same bars with the agent neutral. Where the
# interval holds zero, what the agent adds cannot be told from chance.

# %%
pd.DataFrame(
    {
        agent: {
            "net P&L, USD": f"{found['neutral']['net_pnl']:+,.0f}",
            "its 95 % interval": interval(found["neutral"]["net_pnl_ci95"], 0),
            "Sharpe ratio": number(found["neutral"]["sharpe_ratio"]),
            "its 95 % interval ": interval(found["neutral"]["sharpe_ratio_ci95"], 2),
        }
        for agent, found in test["agent_contributions"].items()
    }
).T

# %%
for name in ("equity_test", "actions_test", "coordination_test"):
    display(Image(filename=str(run / "plots" / f"{name}.png"), width=950))

# %% [markdown]
# ## Take it along
#
# With PyTorch installed `best/` has its export package already: the folder that production loads
# without JAX. On Colab without Drive it is downloaded.

# %%
manifest = run / "manifest.json"
if manifest.exists():
    for name in sorted(json.loads(manifest.read_text())["files"]):
        print(f"{(run / name).stat().st_size:>10,}  {name}")
else:
    print(f"No package without PyTorch. Later: pip install torch && gm-jax export {run}")

if ON_COLAB and not USE_DRIVE:
    import shutil

    from google.colab import files

    files.download(shutil.make_archive(str(folder), "zip", folder))
