"""A deployed model computes what training saw: the same features, decisions and cents."""

import json

import numpy as np
import pytest

from gm_jax.env import arrays
from gm_jax.export import bundle
from gm_jax.mappo import learner
from gm_jax.market import loader
from gm_jax.run import evaluate, evaluation, record
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.source import Source
from tests.deploy.exported import gappy_csv, run_program, train


pytest.importorskip("torch", reason="PyTorch is not installed")

MINUTES = {"tactical": 5, "strategic": 30}
BARS = {"tactical": 4_500, "strategic": 4_000}
# a stop, shorts and tight limits, so that every rule of the account is met
HARD = {"allow_short": "true", "stop_atr": "2", "daily_loss": "0.01"}


@pytest.fixture(scope="module", params=list(MINUTES))
def exported(request, tmp_path_factory):
    """(system, run directory, its bars)."""
    system, folder = request.param, tmp_path_factory.mktemp(request.param)
    file = gappy_csv(folder / "bars.csv", MINUTES[system], BARS[system], seed=5)
    return system, train(system, folder / "run", "--data", str(file), seed="2", **HARD), file


def backtest(run, file, out):
    """Write the ledger that the trainer's own backtest of a file gives; return the setup."""
    directory = RunDirectory.open(run)
    trained, _ = record.reopen(directory)
    checkpoints = Checkpoints(directory.checkpoints)
    networks = learner.chosen(checkpoints.restore(trained))
    checkpoints.close()
    setup = evaluate.elsewhere(trained, Source(data=str(file)))
    ledger = evaluation.team_ledger(setup, networks, setup.split.test)
    evaluate.write_ledger(ledger, setup.system.agents, out)
    return setup, ledger


def desk(system, run):
    return bundle.deployed().deploy_trading_env.Desk.open(run / f"best_{system}_model.pth", system)


def require_same_ledger(run, file, tmp_path):
    done = run_program(run, "--data", str(file), "--out", str(tmp_path / "deployed.csv"))
    assert done.returncode == 0, done.stderr
    assert "p50" in done.stderr
    setup, ledger = backtest(run, file, tmp_path / "trainer.csv")
    assert (tmp_path / "deployed.csv").read_text() == (tmp_path / "trainer.csv").read_text()
    return setup, ledger


def test_free_running_ledgers_are_identical(exported, tmp_path):
    _, run, file = exported
    setup, ledger = require_same_ledger(run, file, tmp_path)
    bars = setup.loaded.bars[setup.warmup :]
    assert bars.roll.any() and bars.hole.any() and (bars.volume == 0).any()
    assert (ledger.position > 0).any() and (ledger.position < 0).any()
    assert ledger.roll_cost.any() and np.ptp(ledger.actions, axis=0).all()
    stops = ledger.traded > np.abs(ledger.target - ledger.position)
    assert stops.any()


def test_real_five_minute_bars(exported, shared_data, tmp_path):
    system, run, _ = exported
    if system == "tactical":
        require_same_ledger(run, shared_data / "NQ - 5 min - ETH.csv", tmp_path)


def test_real_thirty_minute_bars(exported, shared_data, tmp_path):
    system, run, _ = exported
    if system == "strategic":
        text = (shared_data / "NQ - 30 min - ETH.csv").read_text().splitlines(True)
        part = tmp_path / "part.csv"
        part.write_text("".join(text[:6_000]))
        require_same_ledger(run, part, tmp_path)


@pytest.mark.slow
def test_whole_real_thirty_minute_file(exported, shared_data, tmp_path):
    system, run, _ = exported
    if system == "strategic":
        require_same_ledger(run, shared_data / "NQ - 30 min - ETH.csv", tmp_path)


def test_inputs_are_those_of_training_bit_for_bit(exported):
    system, run, file = exported
    setup, _ = record.reopen(RunDirectory.open(run))
    feed = desk(system, run).feed
    bars, _ = loader.load(file, MINUTES[system])
    market = setup.market
    first = setup.warmup
    whole = list(feed.take(bars))
    assert whole[:first] == [None] * first
    parts = {
        "features": np.array([bar.features for bar in whole[first:]]),
        "impact": np.array([bar.impact for bar in whole[first:]]),
        "atr": np.array([bar.atr for bar in whole[first:]]),
        "signals": np.array([bar.signals for bar in whole[first:]]),
    }
    for name, found in parts.items():
        wanted = np.asarray(getattr(market, name))[first:]
        if name == "signals":  # the others are for rewards
            wanted = np.ascontiguousarray(wanted[:, : setup.system.team.RULE_SIGNALS])
        np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32), err_msg=name)
    rows_found = np.array([bar.row for bar in whole[first:]])
    np.testing.assert_array_equal(rows_found, np.asarray(market.bars)[first:])


def test_actions_are_the_best_logits_on_the_ledgers_account(exported, tmp_path, capsys):
    """Replayed on the trainer's own decisions; near ties are counted."""
    system, run, file = exported
    setup, ledger = backtest(run, file, tmp_path / "ledger.csv")
    mine, near = desk(system, run), 0
    decided = iter(zip(ledger.actions, ledger.position, ledger.equity, strict=True))
    for bar in mine.feed.take(setup.loaded.bars):
        if bar is None:
            continue
        actions, position, equity = next(decided)
        seen = mine.trader.look(bar, (-1.0, 1.0))
        top = np.sort(seen.logits, axis=1)
        clear = top[:, -1] - top[:, -2] > 1e-5
        near += int((~clear).sum())
        np.testing.assert_array_equal(seen.logits.argmax(axis=1)[clear], actions[clear])
        assert (seen.state.position, seen.state.equity) == (position, equity)
        mine.trader.decide(seen, actions)
    with capsys.disabled():
        print(f"\n{system}: {near} of {ledger.actions.size:,} actions within 1e-5 of another")
    assert near < 0.01 * ledger.actions.size


def test_one_bar_at_a_time_is_the_file_at_once(exported):
    system, run, file = exported
    bars = loader.load(file, MINUTES[system])[0][:1_600]
    whole, single = desk(system, run), desk(system, run)
    expected = whole.step(bars)
    half = len(bars) - 700
    one_by_one = bars[half:]
    assert all(x.any() for x in (one_by_one.roll, one_by_one.hole, one_by_one.volume == 0))
    found = single.step(bars[:half])
    for i in range(half, len(bars)):
        found += single.step(bars[i : i + 1])
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one[0] == other[0] and one[2:] == other[2:]


def test_grandmodel_layout_decides_alike(exported, tmp_path):
    from gm_jax.export.package import export_run

    system, run, file = exported
    export_run(run, tmp_path / "g", "grandmodel", onnx=False, safetensors=False)
    bars = loader.load(file, MINUTES[system])[0][:1_600]
    one, other = desk(system, run).step(bars), desk(system, tmp_path / "g").step(bars)
    assert [d[2:] for d in one] == [d[2:] for d in other]


def test_package_says_what_it_is(exported):
    system, run, _ = exported
    text = (run / "README.md").read_text()
    assert f"load_{system}_agents" in text and "Only `test` was seen" in text
    results = json.loads((run / "validation_results.json").read_text())["splits"]["test"]
    assert f"{results['net_pnl']:,.0f}" in text


def test_warmup_is_that_of_training(exported):
    system, run, _ = exported
    setup, _ = record.reopen(RunDirectory.open(run))
    assert desk(system, run).feed.warmup == arrays.warmup(
        setup.settings.features, MINUTES[system], setup.system.team
    )
