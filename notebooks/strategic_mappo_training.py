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
# # Train the strategic team
#
# Three agents, `strategic`, `portfolio_manager` and `regime_detector`, learn to hold NQ on
# 30-minute bars by MAPPO. Run all cells: without any file they train on `planted`, a generated and
# **easy** market with a known best policy, in a minute or two on a CPU. Its Sharpe ratios belong to
# that world, not to markets.
#
# On Colab choose a GPU first (Runtime → Change runtime type), set `REPOSITORY`, and keep the runs
# where a cut-off does not reach them, by `USE_DRIVE`. All that you may want to change stands here.

# %% tags=["parameters"]
REPOSITORY = ""  # Colab: address of the git repository that this notebook is from
USE_DRIVE = False  # Colab: keep runs and uploads on Google Drive
RUNS = "exports"  # folder of the run directories, without Drive
RESUME = True  # go on with the newest run there that was cut off

UPLOAD = False  # Colab: ask for a CSV of 30-minute bars
CSV = ""  # or the path of one; without both the generated market
CSV_OPTIONS = {}  # what the check cannot find out, e.g. {"date_format": "day-first"}
MARKET = "planted"

PRESET = "quick"  # small networks, minutes on a CPU; "default" is for a GPU
SETTINGS = {}  # any of configs/training_config.yaml, e.g. {"lr_actor": 1e-4}
SEED = 0
SHOW_EVERY = 10  # episodes between two pictures
SAVE_SECONDS = 60  # between two saves: the most that a cut-off can lose

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
# ## New, or going on
#
# A run that was cut off in this folder goes on exactly where it was last saved, with its own
# settings and bars, whatever is set above. `RESUME = False` begins a new one.

# %%
from datetime import datetime

from gm_jax import StrategicMAPPOTrainer


runs = Path(RUNS)
if USE_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    runs = Path("/content/drive/MyDrive/gm_jax/exports")

preset = {"quick": StrategicMAPPOTrainer.system.quick, "default": {}}[PRESET]
trainer = StrategicMAPPOTrainer(**{**preset, "seed": SEED, **SETTINGS})
cut_off = trainer.unfinished_run(runs) if RESUME else None
if cut_off:
    trainer.load_checkpoint(cut_off)
run = cut_off or runs / f"{datetime.now():%Y%m%d-%H%M%S}-strategic"
planned = trainer.get_training_stats()["planned_episodes"]
print(f"{run}: episodes {len(trainer.history) + 1} to {planned}")

# %% [markdown]
# ## The bars
#
# The same check as `gm-jax data check`: time zone, sessions, holes, rolls and faults are settled
# for the whole file, and what cannot be proved is refused. The team learns on the training part,
# the best of its networks is chosen on validation, and test decides nothing.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from gm_jax.market import loader


if not cut_off:
    data = CSV or MARKET
    if UPLOAD:
        from google.colab import files

        ((name, content),) = files.upload().items()
        data = runs.parent / "data" / name
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_bytes(content)
    trainer.set_data(data, **CSV_OPTIONS)

loaded, (setup, _) = trainer.engine.dataset.loaded, trainer.engine.trained()
bars = loaded.bars
names = ("open", "high", "low", "close", "volume")
frame = pd.DataFrame({name.capitalize(): getattr(bars, name) for name in names})
frame.insert(0, "Date", pd.to_datetime(bars.time, utc=True))
checked = loader.load(frame, None)[1].to_json() if loaded.world else loaded.report

print(Path(loaded.label).name)
shown = ("bars", "bar_minutes", "first", "last", "timezone", "sessions", "gaps", "ohlc_errors")
for key in shown:
    print(f"{key:<14}{checked[key]}")
print(f"{'rolls':<14}{len(checked['rolls'])}")
for warning in checked["warnings"]:
    print(f"warning: {warning}")

figure, axis = plt.subplots(figsize=(11, 3), dpi=80, layout="constrained")
for part in ("train", "validation", "test"):
    first, end = setup.split[part]
    axis.plot(frame["Date"][first:end], bars.close[first:end], lw=0.6, label=part)
axis.set(title="Closes", ylabel="points")
axis.legend(frameon=False, ncols=3)
plt.show()

# %% [markdown]
# ## Training
#
# An episode is one window of bars in every environment at once; the picture follows. Interrupt when
# you like: what was learnt stays, and this cell goes on where it stopped.

# %%
import time

from IPython.display import clear_output


print("compiling; the first picture takes a moment")
saved = time.monotonic()
for episode in range(len(trainer.history) + 1, planned + 1):
    reward, _ = trainer.train_episode()
    if episode % SHOW_EVERY == 0 or episode == planned:
        clear_output(wait=True)
        trainer.plot_training_progress()
        print(f"episode {episode} of {planned}: {reward:+.1f} bp a window")
    if time.monotonic() - saved > SAVE_SECONDS:
        trainer.save_progress(run)
        saved = time.monotonic()

# %% [markdown]
# ## Report
#
# The best networks trade validation and test once, bar after bar, greedily, after all costs. The
# run directory then has report, pictures and, where PyTorch is installed, the export package.

# %%
from contextlib import redirect_stderr

import gm_jax


with redirect_stderr(sys.stdout):
    summary = gm_jax.export_models(trainer, save_dir=run)

# %% [markdown]
# ### Is it more than luck?
#
# Look at the interval first: where it holds zero, nothing is shown. The second probability charges
# for every setting and seed that was tried on these bars. An out-of-sample Sharpe ratio above 1.5
# on real bars calls for a search for the leak; on `planted` it only says that learning works.

# %%
import json

from gm_jax.run.results import RESULTS, interval, number


results = json.loads((run / RESULTS).read_text())["splits"]
pd.DataFrame(
    {
        part: {
            "Sharpe ratio after costs": number(found["sharpe_ratio"]),
            "95 % interval": interval(found["sharpe_ci95"], 2),
            "probability that it is above 0": number(found["probabilistic_sharpe"]),
            "trials on these bars": found["n_trials"],
            "probability after so many": number(found["deflated_sharpe"]),
            "largest drawdown": f"{found['max_drawdown']:.1%}",
            "net P&L, USD": f"{found['net_pnl']:,.0f}",
        }
        for part, found in results.items()
    }
)

# %% [markdown]
# Beside others under the same costs and limits, on test. The oracle, where there is one, knows the
# law of the generated market; `same exposure` holds the team's mean position all the time.

# %%
test = results["test"]
others = {"team": test, **test["baselines"], "oracle": test["oracle"]}
pd.DataFrame(
    {
        name.replace("_", " "): {
            "Sharpe ratio": number(found["sharpe_ratio"]),
            "drawdown": f"{found['max_drawdown']:.1%}",
            "net P&L, USD": f"{found['net_pnl']:,.0f}",
            "exposure": number(found["exposure"]),
            "trades": found["trades"],
        }
        for name, found in others.items()
        if found
    }
).T

# %% [markdown]
# What each agent adds: the team's result, less that of the same bars with the agent neutral.

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

# %% [markdown]
# Where the money was made: by the regime that was known at each bar's close.

# %%
pd.DataFrame(
    {
        name.replace("_", " ").lower(): {
            "share of bars": f"{found['share']:.0%}",
            "net P&L, USD": f"{found['net_pnl']:,.0f}",
            "contracts held": number(found["contracts"]),
        }
        for name, found in test["per_regime"].items()
    }
).T

# %%
from IPython.display import Image, display


for name in ("equity_test", "position_test", "actions_test", "coordination_test"):
    display(Image(filename=str(run / "plots" / f"{name}.png"), width=950))

# %% [markdown]
# ## The package
#
# The files that production loads without JAX: copy the folder to a machine with torch, NumPy and
# pandas and run `python deploy_model.py --data bars.csv`. On Colab without Drive it is downloaded.

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

    files.download(shutil.make_archive(str(run), "zip", run))
