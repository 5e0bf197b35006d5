"""Training runs from the outside: whole, resumable, repeatable, and they learn."""

import json

import jax
import numpy as np
import pytest

from gm_jax import config
from gm_jax.errors import UserError
from gm_jax.run import evaluation, training
from gm_jax.run.directory import RunDirectory
from gm_jax.run.metrics import metric_rows
from gm_jax.run.source import Source
from gm_jax.systems import TACTICAL


TINY = [
    *("hidden_sizes=[16,16]", "num_envs=8", "episode_length=100", "rollout_length=50"),
    *("num_minibatches=2", "num_epochs=2", "num_episodes=8", "validate_every=2"),
    "market_bars=6000",
]
CLOCKS = {"episodes_per_minute", "env_steps_per_second", "memory_bytes"}


def tiny(**changes):
    settings = config.change(TACTICAL.settings, config.parse_assignments(TINY), "--set")
    return settings.replace(**changes)


def begin(out, **changes):
    return training.start(TACTICAL, tiny(**changes), Source(market="planted"), out)


def learned(run_dir):
    """Return (state leaves, metrics without clocks) of a run directory."""
    run = training.resume(run_dir)
    leaves = [
        np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for x in jax.tree.leaves(run.state)
    ]
    run.close()
    rows = run.directory.history()
    return leaves, [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def content(run_dir):
    """Return what was learned and the results of a run directory."""
    return *learned(run_dir), json.loads((run_dir / "validation_results.json").read_text())


def assert_same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[1:] == other[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 iterations that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    summary = training.train(begin(out))
    return out, summary


def test_run_directory_is_whole(whole):
    out, summary = whole
    files = {
        *("model_config.json", "training_statistics.json", "metrics.jsonl"),
        *("validation_results.json", "plots/learning_curve.png", "plots/equity_test.png"),
    }
    assert all((out / name).stat().st_size > 100 for name in files)
    assert list(summary) == [
        *("run_dir", "system", "env_steps", "env_steps_per_second", "compile_seconds"),
        *("wall_seconds", "best_validation_sharpe", "selection_score", "device"),
    ]
    rows = RunDirectory.open(out).history()
    assert [row["iteration"] for row in rows] == list(range(1, 9))
    assert [row["selection_score"] is not None for row in rows] == [False, True] * 4
    best = max(rows[1::2], key=lambda row: row["selection_score"])  # the first of equals
    statistics = json.loads((out / "training_statistics.json").read_text())
    for found in (summary, statistics):
        assert found["selection_score"] == best["selection_score"]
    assert statistics["best_iteration"] == best["iteration"]
    assert set(rows[0]["reward"]) == set(TACTICAL.agents)
    assert {"actor_loss", "critic_loss", "entropy", "approx_kl", "env_steps", *CLOCKS} <= set(
        rows[0]
    )
    record = json.loads((out / "model_config.json").read_text())
    assert record["agents"] == ["tactical", "risk", "execution"]
    assert record["settings"]["hidden_sizes"] == [16, 16]
    splits = json.loads((out / "validation_results.json").read_text())["splits"]
    assert {"flat", "buy_and_hold", "random"} <= set(splits["test"]["baselines"])
    assert splits["test"]["sharpe_reason"].endswith("at least 20 needed")  # null, not NaN


@pytest.mark.slow  # implied by the next
def test_same_seed_same_result(whole, tmp_path):
    training.train(begin(tmp_path / "again"))
    assert_same(content(whole[0]), content(tmp_path / "again"))


def test_stopped_half_way_and_resumed_equals_uninterrupted(whole, tmp_path):
    """Stop at 4 of 8 with a checkpoint at 3 and metrics beyond it, as after a power cut."""
    out = tmp_path / "half"
    run = begin(out)
    arguments = (run.setup.market, run.setup.params, run.setup.hyper, run.setup.segments)
    for done in range(4):
        run.state, metrics = training.learner.train(
            run.state, np.int32(1), *arguments, config=run.setup.config
        )
        run.directory.append_metrics(
            metric_rows(run.setup, jax.device_get(metrics), done, 1, seconds=1.0)
        )
        if done < 3:
            run.checkpoints.save(run.setup, run.state)
    run.close()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "half a li')
    training.train(training.resume(out))
    assert_same(content(whole[0]), content(out))


def test_what_cannot_be_resumed_is_refused(tmp_path, whole):
    with pytest.raises(UserError, match="no run directory"):
        training.resume(tmp_path)
    out = tmp_path / "other"
    begin(out).close()
    record = json.loads((out / "model_config.json").read_text())
    for key, value, said in [
        ("schema_version", 99, "schema version 99"),
        ("data_sha256", "0" * 64, "not what this run was trained on"),
    ]:
        (out / "model_config.json").write_text(json.dumps(record | {key: value}))
        with pytest.raises(UserError, match=said):
            training.resume(out)
    other = record["settings"] | {"hidden_sizes": [32]}
    (out / "model_config.json").write_text(json.dumps(record | {"settings": other}))
    with pytest.raises(UserError, match=r"hidden_sizes \[16, 16\], now \[32\]"):
        training.resume(out)
    with pytest.raises(UserError, match="is not empty"):
        begin(whole[0])


def splits_of(tmp_path, market, **changes):
    settings = TACTICAL.settings.replace(**(TACTICAL.quick | changes))
    run = training.start(TACTICAL, settings, Source(market=market), tmp_path / market)
    training.train(run)
    return json.loads((tmp_path / market / "validation_results.json").read_text())["splits"]


@pytest.mark.usefixtures("optimised")
def test_learns_the_planted_drift(tmp_path, monkeypatch):
    """At least 75 % of the oracle's after-cost Sharpe out of sample, long-only."""
    monkeypatch.setattr(evaluation, "contributions", lambda *_: {})
    monkeypatch.setattr(training, "_export", lambda run: None)
    splits = splits_of(tmp_path, "planted", num_episodes=20)
    assert splits["test"]["oracle_sharpe"] > 4
    assert splits["test"]["oracle_share"] > 0.75


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_stays_flat_where_nothing_can_be_earned(tmp_path):
    """Mean absolute position under 5 % of the limit on a martingale."""
    splits = splits_of(tmp_path, "martingale")
    assert splits["test"]["exposure"] < 0.05
    assert splits["test"]["last"]["exposure"] < 0.05
    assert splits["test"]["baselines"]["random"]["net_pnl"] < 0


def test_only_a_run_at_its_planned_end_is_analysed(tmp_path, monkeypatch):
    """Neither one stopped half-way nor one interrupted in its last interval."""
    asked = []
    monkeypatch.setattr(training, "write_results", lambda *_: {})
    monkeypatch.setattr(training, "analyse", lambda *_: asked.append(True))
    run = begin(tmp_path / "run", num_episodes=1, null_copies=1)
    training.finish(run, began=0.0)
    run.state, run.interrupted = run.state.replace(iteration=np.int32(1)), True
    training.finish(run, began=0.0)
    assert not asked
    run.interrupted = False
    training.finish(run, began=0.0)
    assert asked
    run.close()
