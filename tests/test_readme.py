"""What README and CONTRIBUTING print is run as printed, and said of the program as it is.

Each section's Python blocks run in order, in one namespace, in a folder that has the files they
name. Only the defaults are smaller: networks, windows and environments of full size would take the
snippets an hour on two cores, and what they show does not depend on it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from contextlib import redirect_stderr
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml

from gm_jax import batch_trials, cli, gpu_optimizer
from gm_jax.cli_base import settings_of
from gm_jax.config import change
from gm_jax.env import rewards
from gm_jax.export import package
from gm_jax.market import features, loader, regimes, registry
from gm_jax.market.synthetic import generate
from gm_jax.market.worlds import MARKETS
from gm_jax.market.writing import write_csv
from gm_jax.run import launch, sweep_plan, training
from gm_jax.run.source import Source
from gm_jax.settings import Settings
from gm_jax.systems import STRATEGIC, SYSTEMS, TACTICAL


pytestmark = pytest.mark.usefixtures("quick_compiler")  # the programs run for moments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LEARNING = (ROOT / "benchmarks" / "learning.md").read_text(encoding="utf-8")
TEXTS = {"README": README, "CONTRIBUTING": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}
SMALL = {
    **{"hidden_sizes": (16, 16), "layer_norm": 0, "num_envs": 16, "num_epochs": 1},
    **{"episode_length": 100, "rollout_length": 50, "num_minibatches": 2, "market_bars": 6_000},
    "initial_neutral": 0.2,  # or what has hardly learnt would not trade
}
DEFAULTS = {name: system.settings for name, system in SYSTEMS.items()}


def blocks(text: str, language: str) -> dict[str, list[str]]:
    """Return the code blocks of a language by the section (##) that they are in."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", text, flags=re.M):
        code = re.findall(rf"^```{language}\n(.*?)^```", part, flags=re.M | re.S)
        if code:
            found[part.partition("\n")[0]] = code
    return found


SNIPPETS = {
    f"{name}: {section}": code
    for name, text in TEXTS.items()
    for section, code in blocks(text, "python").items()
}


@pytest.fixture(scope="module")
def small():
    """Smaller defaults for both systems."""
    with pytest.MonkeyPatch.context() as patch:
        for system in SYSTEMS.values():
            patch.setitem(vars(system), "settings", system.settings.replace(**SMALL))
        yield


@pytest.fixture(scope="module")
def store(quick_compiler, small, tmp_path_factory):
    """The files that the snippets name: bars of both systems, and packages of teams.

    The tactical team's is of a run of the command line; what that said is in `said.txt`.
    """
    folder = tmp_path_factory.mktemp("store")
    (folder / "data").mkdir()
    for system in SYSTEMS.values():
        path = folder / "data" / f"NQ - {system.minutes} min - ETH.csv"
        write_csv(generate("planted", bars=6_000, minutes=system.minutes, seed=1).bars, path)
        head, rows = path.read_text().split("\n", 1)  # as in the files that are sold under the name
        assert head == "Date,Open,High,Low,Close,Volume"
        path.write_text(f"timestamp,open,high,low,close,volume\n{rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(package, "available", lambda: False)  # as where README's lines are from
        patch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have it
        with (folder / "said.txt").open("w") as said, redirect_stderr(said):
            # enough sessions in both splits for a Sharpe ratio
            sets = ("num_episodes=3", "validate_every=3", "split=[0.6,0.2,0.2]")
            flags = [text for setting in sets for text in ("--set", setting)]
            assert cli.main(["train", "tactical", *flags, "--set", "market_bars=32768"]) == 0
    (run,) = (folder / "exports").glob("*-tactical")
    run.rename(folder / "exports" / "tactical_training")
    package.export_run(folder / "exports" / "tactical_training", onnx=False, safetensors=False)
    with pytest.MonkeyPatch.context() as patch:  # it is exported, and not trained
        patch.setattr(
            launch, "compile_program", lambda setup: SimpleNamespace(setup=setup, bytes_needed=0)
        )
        source = Source(market="planted")
        begun = training.start(STRATEGIC, STRATEGIC.settings, source, folder / "strategic")
    package.export(
        begun.directory, begun.setup, begun.state, folder / "exports" / "strategic_training"
    )
    begun.close()
    return folder


@pytest.fixture
def tables():
    """What examples add to the package is taken out again."""
    all_of = (registry.REGISTRY, rewards.TERMS, regimes.REGIME_WINDOW, loader.MIN_BARS)
    before = [dict(table) for table in all_of]
    yield
    for table, content in zip(all_of, before, strict=True):
        table.clear()
        table.update(content)


def in_this_process(system, settings, bars, size):
    """Stand for a trial in a process of its own, which tests/test_gpu_optimizer.py has."""
    program = batch_trials.run_once(batch_trials.stand_in(system, settings, bars))
    assert settings.num_envs == size
    return batch_trials.Trial(program, program)


@pytest.mark.parametrize("section", SNIPPETS)
def test_python_runs_as_printed(section, store, tables, tmp_path, monkeypatch, capsys):
    code = "\n".join(SNIPPETS[section])
    shutil.copytree(store / "data", tmp_path / "data")
    if "export_models(" not in code:
        shutil.copytree(store / "exports", tmp_path / "exports")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gpu_optimizer.LIMITS, "cpu", (16, 0.7))
    monkeypatch.setattr(
        batch_trials,
        "_in_child",
        lambda system, settings, bars, size: in_this_process(
            system, settings.replace(num_envs=size), bars, size
        ),
    )
    printed = ModuleType("printed")
    monkeypatch.setitem(sys.modules, "printed", printed)
    exec(compile(code, section, "exec"), vars(printed))
    CHECKS[section](vars(printed), capsys.readouterr().out)


def _trained(space, out):
    assert space["steps"] == 16 * 100
    assert out.count("agent average reward: ") == 3
    assert Path("exports/tactical_training/manifest.json").is_file()
    assert space["seen"].obs.shape == (16, 3, 7)
    assert space["seen"].global_obs.shape == (16, 12)
    assert space["outcome"].reward.shape == space["actions"].shape == (16, 3)
    legal = np.take_along_axis(np.asarray(space["seen"].mask), space["actions"][..., None], -1)
    assert legal.all()


def _deployed(space, out):
    assert list(space["tactical_actions"]) == list(TACTICAL.agents)
    assert list(space["strategic_actions"]) == list(STRATEGIC.agents)


def _measured(space, out):
    assert space["batch_size"] == 16
    assert {"device_used_bytes", "host_free_bytes"} <= set(space["memory_info"])


def _added(space, out):
    row = space["trainer"].history[-1]
    assert list(row["reward"]) == ["tactical", "risk", "execution", "veto"]
    assert row["terms"]["overnight"] < 0
    bars, length = space["bars"], 14
    place = (2 * bars.close - bars.high - bars.low) / (bars.high - bars.low)
    assert features.compute(["close_location_14"], bars)[-1, 0] == pytest.approx(
        place[-length:].mean()
    )


CHECKS = {
    "README: From Python": _trained,
    "README: Deploy": _deployed,
    "README: Troubleshooting": _measured,
    "CONTRIBUTING: Adding things": _added,
}


def test_all_that_people_call_is_among_the_snippets():
    printed = "\n".join(code for section in SNIPPETS.values() for code in section)
    for call in (
        *("for episode in range(num_episodes):", "trainer.train_episode(data=df)"),
        *("if episode % 50 == 0:\n        trainer.plot_training_progress()",),
        *("performance = trainer.train_episode(data=df)", "if performance > best_performance:"),
        'trainer.save_checkpoint(f"best_lr{lr}_bs{bs}.pth")',
        'for i, name in enumerate(["tactical", "risk", "execution"]):',
        *("trainer.get_agent_rewards(agent_idx=i)", "trainer.plot_agent_coordination()"),
        'trainer.load_checkpoint("best_tactical_model.pth")',
        "actions, _, _ = trainer.get_action(states, deterministic=True)",
        *("env.load_tactical_agents(", "env.load_strategic_agents("),
        *("env.get_tactical_actions(", "env.get_strategic_actions("),
        *("gpu_optimizer.optimize_batch_size(", "monitor_memory()", "clear_cache()"),
        'export_models(trainer, save_dir="exports/tactical_training")',
    ):
        assert call in printed, call


# commands


def commands(text: str) -> tuple[set[str], set[str]]:
    """Return the command lines of gm-jax shown in blocks, and those named inside a line."""
    shown = [
        part.strip()
        for section in blocks(text, "sh").values()
        for line in "".join(section).splitlines()
        for part in line.partition(" #")[0].split("&&")
    ]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    named = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return tuple({x for x in found if x.startswith("gm-jax ")} for found in (shown, named))


SHOWN, NAMED = commands("\n".join([*TEXTS.values(), LEARNING]))
STANDS_FOR = {"SYSTEM": "tactical", "KEY=A,B,…": "gamma=.9,.99", "WORLD": "planted"}
STANDS_FOR |= dict.fromkeys(("K", "N"), "2")


@pytest.mark.parametrize("line", sorted(SHOWN | NAMED))
def test_commands_are_those_of_the_program(line, capsys):
    words = [STANDS_FOR.get(word, word) for word in shlex.split(line) if word != "…"][1:]
    if line in SHOWN or (words[1:] and words[1] in SYSTEMS):
        arguments = cli._parser().parse_args(words)
        if "system" in arguments:
            settings_of(arguments, SYSTEMS[arguments.system])  # keys and values of --set exist
            sweep_plan.parse_grid(getattr(arguments, "grid", []))
            assert getattr(arguments, "market", None) in (None, *MARKETS)
        return
    name = words[:2] if words[0] == "data" else words[:1]
    with pytest.raises(SystemExit, match=r"^0$"):
        cli._parser().parse_args([*name, "--help"])
    known = capsys.readouterr().out
    assert not [word for word in words if word.startswith("--") and word not in known]


# the first command


def form(line: str) -> str:
    """Return a line with its figures left out."""
    line = re.sub(r"[▁▂▃▄▅▆▇█]+", "~", line)
    line = re.sub(r"exports/[-\w]+", "RUN", line.replace("not met", "met"))
    return re.sub(r"[-+]?\d[\d,.]*(:\d\d)?|n/a", "#", line)


def test_the_first_command_prints_what_readme_shows(store):
    (block,) = blocks(README, "")["What the first command shows"]
    said = [form(line) for line in (store / "said.txt").read_text().splitlines()]
    shown = [form(line) for line in block.splitlines() if line != "…"]
    assert shown == list(dict.fromkeys(said))


# tables


def rows(section: str, title: str) -> list[list[str]]:
    """Return the cells of the table whose first heading is `title`."""
    (part,) = [part for part in re.split(r"^##+ ", README, flags=re.M) if part.startswith(section)]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 :]]


def test_every_setting_is_in_the_table_with_its_defaults():
    found = {"tactical": {}, "strategic": {}}
    for names, tactical, strategic, phrase in rows("Settings", "setting"):
        keys = re.findall(r"`(\w+)`", names)
        assert phrase
        for system, cell in (("tactical", tactical), ("strategic", strategic or tactical)):
            values = [yaml.safe_load(value) for value in cell.split(" · ")]
            assert len(values) == len(keys), names
            found[system] |= dict(zip(keys, values, strict=True))
    for name, system in DEFAULTS.items():
        assert list(found[name]) == list(dict.fromkeys(found[name]))
        assert set(found[name]) == {field.name for field in fields(Settings)}
        # a number in YAML may be text, 3e-4; `change` reads it as --set does
        assert change(Settings(), found[name], "README") == system


def test_the_old_calls_are_in_the_table():
    then = "\n".join(row[0] for row in rows("Coming from the PyTorch trainers", "then"))
    for call in (
        *("pettingzoo", "colab.trainers", "src.agents.trading_env", "train_episode(data=df)"),
        *("k_epochs", "start_idx", "get_action", "save_checkpoint", "load_checkpoint"),
        *("plot_training_progress", "plot_agent_coordination", "get_agent_rewards"),
        *("export_models", "optimize_batch_size", "monitor_memory", "clear_cache", "GradScaler"),
    ):
        assert call in then, call


def test_files_that_are_linked_exist():
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/learning.md", "benchmarks/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), (name, target)
