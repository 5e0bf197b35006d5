"""Settings: one place, strictly read."""

from pathlib import Path

import pytest

from gm_jax import cli, cli_base, config
from gm_jax.errors import UserError
from gm_jax.settings import Settings
from gm_jax.systems import SYSTEMS


SHIPPED = Path(__file__).parents[1] / "configs" / "training_config.yaml"


@pytest.mark.parametrize("name", SYSTEMS)
def test_shipped_file_states_every_default(name):
    import yaml

    section = yaml.safe_load(SHIPPED.read_text())[name]
    assert set(section) == set(SYSTEMS[name].settings.to_json())
    other = SYSTEMS[name].settings.replace(lr_actor=9.0, allow_short=True, hidden_sizes=(1, 1))
    assert config.merge(other, [config.read_section(SHIPPED, name)]) == SYSTEMS[name].settings


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr_actor=1e-4", "lr_actor", 1e-4),
        ("num_envs=1e3", "num_envs", 1000),
        ("hidden_sizes=[64,64]", "hidden_sizes", (64, 64)),
        ("features=[rsi_14, return_60]", "features", ("rsi_14", "return_60")),
        ("allow_short=true", "allow_short", True),
        ("critic=local", "critic", "local"),
        ("market.kappa=0.05", "market_parameters", {"kappa": 0.05}),
    ],
)
def test_set_reads_text_by_the_type_of_its_setting(text, key, value):
    changed = config.change(Settings(), config.parse_assignments([text]), "--set")
    assert getattr(changed, key) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr_acter=1", "Did you mean `lr_actor`"),
        ("num_envs=2.5", "expected a whole number"),
        ("num_envs=true", "expected a whole number"),
        ("num_envs=--64", "expected a whole number"),
        ("lr_actor=nan", "expected a number"),
        ("allow_short=yes", "expected true or false"),
        ("hidden_sizes=[64,x]", "expected a whole number"),
        ("critic=both", "expected central or local"),
        ("num_envs=0", "expected a number above 0"),
        ("gamma=1.5", "expected a number from 0 to 1"),
        ("rollout_length=300", "expected a divisor of episode_length 1000"),
        ("num_minibatches=7", "expected a divisor of num_envs"),
        ("split=[0.5,0.5]", "expected three shares"),
        ("features=[rsi_14,rsi_14]", "expected each name once"),
        ("lots_large=9", "expected between lots_small 1 and max_contracts 6"),
        ("start_equity_usd=1e7", "expected at most 2,684,355"),
        ("point_value_usd=0.123", "whole cents"),
        ("market.kappa=x", "expected a number"),
        ("instrument=ES", "expected MNQ or NQ"),
        ("spread_ticks_other=1e9", "expected at most 1000"),
        ("validate_every=1e10", "expected less than 2"),
        ("seed=18446744073709551615", "18446744073709551615"),
        ("seed=-1", "expected a whole number from 0"),
    ],
)
def test_what_no_run_could_use_is_refused(text, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        config.change(Settings(), config.parse_assignments([text]), "--set")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tactical: {lr_actor: 1e-4, lr_aktor: 2}", "Did you mean `lr_actor`"),
        ("tactical: [1]", "no section `tactical`"),
        ("tactical: {1: 2}", "Unknown setting `1`"),
        ("tactical: {market_parameters: 5}", "expected a mapping"),
        ("tactcal: {}", "expected the sections"),
        ("tactical: {instrument: NQ, point_value_usd: 2.0}", "is 2, that of MNQ.*sets both"),
        ("tactical: {instrument: MNQ, commission_usd: 2.25}", "is 2.25, that of NQ"),
        ("tactical: {instrument: [NQ]}", "expected a word"),
        ("", "expected the sections"),
        ("tactical: {a: [", "is not YAML"),
    ],
)
def test_config_files_are_read_strictly(tmp_path, text, said):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        config.merge(Settings(), [config.read_section(file, "tactical")])


def test_of_preset_file_set_and_seed_the_later_wins(tmp_path):
    """Whatever their order on the command line."""
    file, system = tmp_path / "c.yaml", SYSTEMS["tactical"]
    file.write_text("tactical: {hidden_sizes: [32], num_epochs: 2, num_envs: 16, seed: 1}")
    flags = ["--seed=3", "--set=num_envs=24", "--set=seed=2", f"--config={file}", "--preset=quick"]
    found = cli_base.settings_of(cli._parser().parse_args(["train", "tactical", *flags]), system)
    assert system.quick["hidden_sizes"] != (32,)
    later = {"hidden_sizes": (32,), "num_epochs": 2, "num_envs": 24, "seed": 3}
    assert found == system.settings.replace(**system.quick | later)
    assert found.num_episodes != system.settings.num_episodes  # the preset's own

    file.write_text("tactical: {episode_length: 300}")  # together with what --set says it fits
    flags = [f"--config={file}", "--set=rollout_length=100"]
    found = cli_base.settings_of(cli._parser().parse_args(["train", "tactical", *flags]), system)
    assert (found.episode_length, found.rollout_length) == (300, 100)


def test_naming_an_instrument_sets_its_money():
    settings = config.change(Settings(), {"instrument": "NQ", "commission_usd": "2"}, "--set")
    assert (settings.point_value_usd, settings.commission_usd) == (20.0, 2.0)


def test_unreadable_files_and_bad_assignment(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        config.merge(Settings(), [config.read_section("nowhere.yaml", "tactical")])
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"tactical: {instrument: \xe9}")
    with pytest.raises(UserError, match="not UTF-8"):
        config.merge(Settings(), [config.read_section(latin, "tactical")])
    with pytest.raises(UserError, match="expected key=value"):
        config.parse_assignments(["lr_actor"])
