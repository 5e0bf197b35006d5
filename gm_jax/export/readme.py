"""The README of an export package: what the model is, what it is worth, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from gm_jax.run.directory import RunDirectory
from gm_jax.run.setup import Setup


SPLITS = ("validation", "test")


def text(directory: RunDirectory, setup: Setup, layout: str, reported: bool) -> str:
    """Return the README of a run's package.

    Args:
        directory: of the run.
        setup: of the run.
        layout: of the checkpoints.
        reported: whether the directory's results are of these networks.
    """
    config = directory.config()
    path = directory.path / "validation_results.json"
    results = json.loads(path.read_text()) if reported else None
    parts = (
        _what(setup, config),
        _worth(results),
        _use(setup.system.name),
        _files(setup, layout),
        _limits(setup),
    )
    return "\n".join(line for part in parts for line in part)


def _what(setup: Setup, config: dict[str, Any]) -> Iterator[str]:
    system, settings, split = setup.system, setup.settings, config["split"]
    yield f"# A {system.name} team of gm_jax\n"
    yield (
        f"Three agents ({', '.join(system.agents)}) that decide together at the close of every "
        f"{system.minutes}-minute bar, on one account. The order they come to fills at the open of "
        "the next bar."
    )
    yield f"\nTrained by gm_jax {version('gm-jax')} on {setup.loaded.label}.\n"
    for name in ("train", *SPLITS):
        first, end = split[name]["bars"]
        yield (
            f"- {name}: {split[name]['first']} to {split[name]['last']}, {end - first:,} bars"
            + (" (the best networks were chosen on it)" if name == "validation" else "")
        )
    sides = "long and short" if settings.allow_short else "long only"
    verbs = ", ".join(f"{i} {name}" for i, name in enumerate(system.actions))
    yield (
        f"\nAccount: {settings.instrument}, {settings.point_value_usd:g} USD a point, at most "
        f"{settings.max_contracts} contracts, {sides}, start {settings.start_equity_usd:,.0f} USD."
    )
    yield f"Actions: {verbs}.\n"


def _worth(results: dict[str, Any] | None) -> Iterator[str]:
    yield "## What it was worth\n"
    if results is None:
        yield "Exported before an evaluation of these networks: nothing is known of their worth.\n"
        return
    yield (
        "One account through each split, all costs paid, beside what holding the market at the "
        "same mean exposure would have given. Only `test` was seen neither in training nor in "
        "choosing.\n"
    )
    columns = (
        "Sharpe ratio",
        "95 % interval",
        "drawdown",
        "net P&L, USD",
        "costs, USD",
        "exposure",
    )
    yield f"| split | {' | '.join(columns)} | buy and hold |"
    yield f"|---{'|---' * (len(columns) + 1)}|"
    for name in SPLITS:
        yield _row(name, results["splits"][name])
    test = results["splits"]["test"]
    yield ""
    if test["sharpe_ratio"] is None:
        yield f"There is no test Sharpe ratio: {test['sharpe_reason']}."
    null = test["null_test"]
    yield (
        f"Chance: p = {null['p_value']:.3f} against {null['copies']} markets without direction."
        if null
        else "How much of it is luck was not tested (`gm-jax train … --null N`)."
    )
    for name, target in test["targets"].items():
        yield (
            f"Target {name.replace('_', ' ')} {target['target']}: "
            f"{_number(target['value'], '.2f')}, {'met' if target['met'] else 'not met'}."
        )
    yield "\nThe past of one market says little about its future; trade it on paper first.\n"


def _row(name: str, found: dict[str, Any]) -> str:
    interval = found["sharpe_ci95"]
    costs = found["commission"] + found["spread_cost"] + found["impact_cost"]
    hold = found["baselines"]["buy_and_hold_same_exposure"]["sharpe_ratio"]
    cells = (
        name,
        _number(found["sharpe_ratio"], ".2f"),
        "none" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        f"{found['max_drawdown']:.1%}",
        f"{found['net_pnl']:,.0f}",
        f"{costs:,.0f}",
        f"{found['exposure']:.2f}",
        _number(hold, ".2f"),
    )
    return f"| {' | '.join(cells)} |"


def _number(x: float | None, form: str) -> str:
    return "none" if x is None else format(x, form)


def _use(system: str) -> Iterator[str]:
    minutes = {"tactical": 5, "strategic": 30}[system]
    yield f"""## Use it

Copy the whole folder. Python with `torch`, `numpy` and `pandas` is enough; every file is checked
against `manifest.json` before it is used.

```sh
python deploy_model.py --data bars.csv --out ledger.csv    # a row per bar
python deploy_model.py --data bars.csv --follow            # and on, as the file grows
```

```python
import pandas as pd
from deploy_model import TradingEnvironment

env = TradingEnvironment()                       # live=False for bars of the past
env.load_{system}_agents("best_{system}_model.pth")
frame = pd.read_csv("bars.csv")                  # all so far: Date, Open, High, Low, Close, Volume
actions = env.get_{system}_actions(frame)      # {{agent: action id}} at the last closed bar
order = env.decision("{system}")                # .target: what to hold from the next open on
env.sync(position=order.target, equity=100_000)  # the broker's truth, before the next call
```

The frame needs the {minutes}-minute bars of the warm-up at least. The first call opens a flat paper
account; `sync` puts the broker's truth in its place at the next decision.
"""


def _files(setup: Setup, layout: str) -> Iterator[str]:
    name, agents = setup.system.name, setup.system.agents
    yield "## Files\n"
    yield f"- `best_{name}_model.pth`, `final_{name}_model.pth`: the whole team, layout `{layout}`"
    yield f"- `{agents[0]}_actor.pth`, `{agents[0]}_critic.pth` and so on: one network each"
    yield "- `model_config.json`: features in order, scaler, settings, data and split"
    yield "- `feature_state.json`: the features' memory after the last bar of the training file"
    yield "- `deploy_model.py`: features, masks, composition, limits and paper account\n"
    yield (
        "Networks take raw features: the scaler is in the first layer. Every `.pth` loads with "
        "`torch.load(path, weights_only=True)`.\n"
    )


def _limits(setup: Setup) -> Iterator[str]:
    settings, minutes = setup.settings, setup.system.minutes
    yield f"""## Limits

- It knows {minutes}-minute bars of the instrument above and nothing else: no news, no order book,
  no other market. Other bars, another tick or other sessions mean another model.
- Fills are modelled: the next open, half the spread, commission and a square-root impact. Queues,
  partial fills, outages and margin changes are not.
- Live it refuses when the last closed bar is more than two bars old, when a bar of the warm-up is
  missing or is no bar, and when a file is not what was exported.
- Limits: leverage {settings.max_leverage:g} × equity, daily loss {settings.daily_loss:.0%},
  drawdown {settings.max_drawdown:.0%}; after the drawdown limit it stays flat.
"""
