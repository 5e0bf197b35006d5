"""`TradingEnvironment`: frames in, actions out; what it refuses, and what it remembers."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from gm_jax import cli
from gm_jax.deploy import trading_env
from gm_jax.deploy.package import open_package
from gm_jax.errors import UserError
from gm_jax.export import bundle
from gm_jax.market.calendar import closed
from tests.deploy.exported import train


pytest.importorskip("torch", reason="PyTorch is not installed")

SYSTEM, MINUTES = "tactical", 5


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    settings = {"market_bars": "6000", "allow_short": "true"}
    return train(SYSTEM, folder / "run", "--market", "realistic", "--seed", "1", **settings)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Bars without a hole that follow no training."""
    path = tmp_path_factory.mktemp("frame") / "bars.csv"
    synth = ["data", "synth", "--market", "realistic", "--bars", "1200", "--seed", "9"]
    assert cli.main([*synth, "--minutes", "5", "--out", str(path)]) == 0
    return pd.read_csv(path)


def environment(package, live=False, **options):
    env = bundle.deployed().TradingEnvironment(live, **options)
    env.load_tactical_agents(package / "best_tactical_model.pth")
    return env


def refuses(match):
    return pytest.raises(bundle.deployed().UserError, match=match)


def closing(frame, bars_later=0.0):
    """A clock that shows the close of the last bar, or so many bars later."""
    last = pd.Timestamp(frame.iloc[-1, 0], tz="America/New_York")
    return lambda: last.timestamp() + (1 + bars_later) * 60 * MINUTES


# decisions


def test_same_frame_same_answer_and_one_trade(package, frame):
    env = environment(package)
    for end in range(1_000, 1_020):
        actions = env.get_tactical_actions(frame[:end])
        decided = env.decision(SYSTEM)
        assert actions == env.get_tactical_actions(frame[:end])
        assert env.decision(SYSTEM) is decided
    assert list(actions) == ["tactical", "risk", "execution"]
    assert all(0 <= action < 5 for action in actions.values())


def test_asking_twice_changes_nothing_later(package, frame):
    once, twice = environment(package), environment(package)
    for end in range(1_000, 1_025):
        mine = once.get_tactical_actions(frame[:end])
        for _ in range(2):
            assert twice.get_tactical_actions(frame[:end]) == mine
    assert once.decision(SYSTEM)[2:] == twice.decision(SYSTEM)[2:]
    assert once.decision(SYSTEM).position != 0 or once.decision(SYSTEM).equity != 10_000_000


def test_paper_account_opens_flat_at_the_last_bar(package, frame):
    env = environment(package)
    env.get_tactical_actions(frame[:1_000])
    decided = env.decision(SYSTEM)
    assert (decided.position, decided.equity) == (0, 10_000_000)


def test_bars_may_come_in_any_portions(package, frame):
    slow, quick = environment(package), environment(package)
    for end in (1_000, *range(1_001, 1_031)):
        slow.get_tactical_actions(frame[:end])
    quick.get_tactical_actions(frame[:1_000])
    quick.get_tactical_actions(frame[:1_030])
    assert slow.decision(SYSTEM)[2:] == quick.decision(SYSTEM)[2:]


def test_warmup_must_be_over(package, frame):
    env = environment(package)
    for _ in range(2):
        with refuses("warm-up is not over: 50 bars"):
            env.get_tactical_actions(frame[:50])


def test_feature_state_of_other_features_is_refused(package, monkeypatch):
    found = open_package(package / f"best_{SYSTEM}_model.pth", SYSTEM)
    found.feature_state["stream"]["names"].append("rsi_5")
    monkeypatch.setattr(trading_env, "open_package", lambda *_: found)
    with pytest.raises(UserError, match=r"feature_state\.json is of other features"):
        trading_env.Desk.open(package / f"best_{SYSTEM}_model.pth", SYSTEM)


def test_start_from_feature_state_equals_start_from_first_bar(package, tmp_path):
    """The run's own bars and more: from training's memory, or all anew."""
    path = tmp_path / "bars.csv"
    synth = ["data", "synth", "--market", "realistic", "--seed", "1", "--minutes", "5"]
    assert cli.main([*synth, "--bars", "6000", "--out", str(path)]) == 0
    whole = pd.read_csv(path)
    more = whole[1_000:1_012].assign(Date=stamps_after(whole["Date"].iloc[-1], 12))
    longer = pd.concat([whole, more], ignore_index=True)
    remembering, anew = environment(package), environment(package)
    last = bundle.deployed().market_loader.load(whole, 5)[0][-1:]
    assert remembering._desks[SYSTEM].package.feature_state["last"]["time"] == last.time[0]
    anew._desks[SYSTEM].package.feature_state["last"]["close"] += 0.25  # now it fits no bar
    for end in range(len(whole) + 1, len(longer)):
        found = remembering.get_tactical_actions(longer[:end])
        assert found == anew.get_tactical_actions(longer[:end])
    assert remembering._desks[SYSTEM].feed.state() == anew._desks[SYSTEM].feed.state()
    # nothing new yet: the run's last bar itself is decided on, by a frame that knows less
    late = environment(package)
    assert len(late.get_tactical_actions(whole[3_000:])) == 3
    for end in range(len(whole) + 1, len(longer)):
        late.get_tactical_actions(longer[3_000:end])
    assert late._desks[SYSTEM].feed.state() == anew._desks[SYSTEM].feed.state()
    # it did begin there: the other has seen the same bars, but one by one
    assert remembering.decision(SYSTEM)[2:] == anew.decision(SYSTEM)[2:]


def stamps_after(last, count):
    """Return stamps of trading hours after one, on a New York clock."""
    begin = pd.Timestamp(last, tz="America/New_York") + pd.Timedelta(minutes=5)
    grid = pd.date_range(begin, periods=1_000, freq="5min")
    utc = grid.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[ns]")
    return grid[~closed(utc.astype(np.int64))][:count].strftime("%Y-%m-%d %H:%M:%S").to_numpy()


# what the broker says


def test_sync_replaces_the_paper_account(package, frame):
    env = environment(package)
    env.get_tactical_actions(frame[:1_000])
    env.sync(position=2, equity=99_000.5)
    env.get_tactical_actions(frame[:1_001])
    decided = env.decision(SYSTEM)
    assert (decided.position, decided.equity) == (2, 9_900_050)
    env.get_tactical_actions(frame[:1_002])
    assert env.decision(SYSTEM).equity != 9_900_050  # two contracts or a trade moved it


def test_sync_is_of_the_newest_bar_where_some_were_missed(package, frame):
    env = environment(package)
    env.get_tactical_actions(frame[:1_000])
    env.sync(position=2, equity=99_000.5)
    env.get_tactical_actions(frame[:1_003])
    decided = env.decision(SYSTEM)
    assert (decided.position, decided.equity) == (2, 9_900_050)
    trader = env._desks[SYSTEM].trader
    trader.state = trader.state.replace(equity=5_000_000)  # paper alone has lost a half
    env.sync(position=0, equity=99_000)
    env.get_tactical_actions(frame[:1_006])
    assert trader.state.closed == 0


def test_a_position_that_was_synced_has_its_own_stop(package, frame):
    env = environment(package)
    trader = env._desks[SYSTEM].trader
    trader.params = trader.params.replace(stop_atr=2.0)
    env.get_tactical_actions(frame[:1_000])
    for end, position in ((1_001, 0), (1_002, 2), (1_003, -2)):
        env.sync(position=position)
        env.get_tactical_actions(frame[:end])
        price = round(frame["Close"][end - 1] / 0.25)
        assert trader.state.position == position
        assert np.sign(trader.state.stop - price) == -np.sign(position) if position else True
        assert (trader.state.stop == 0) == (position == 0)


def test_sync_before_the_first_call_wants_what_is_held(package, frame):
    env = environment(package)
    env.sync(position=3, equity=50_000)
    env.get_tactical_actions(frame[:1_000])
    decided = env.decision(SYSTEM)
    assert (decided.position, decided.equity) == (3, 5_000_000)
    assert env._desks[SYSTEM].trader.state.controls.desired == 3
    assert env._desks[SYSTEM].trader.state.peak == 5_000_000  # no drawdown out of nothing


def test_sync_judges_the_limits_anew(package, frame):
    env = environment(package)
    env.get_tactical_actions(frame[:1_000])
    env.sync(position=2, equity=60_000)  # a drawdown of two fifths
    env.get_tactical_actions(frame[:1_001])
    assert env.decision(SYSTEM).target == 0


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"positon": 1}, "knows no 'positon'; it takes position, equity"),
        ({"position": 1.5}, "position is 1.5, expected a whole number"),
        ({"position": 7}, "position 7 is beyond the 6 contracts"),
        ({"equity": float("nan")}, "equity is nan, expected USD"),
    ],
)
def test_sync_refuses_what_no_account_can_have(package, truth, message):
    with refuses(message):
        environment(package).sync(**truth)


# live


def test_live_decides_on_fresh_bars_and_leaves_the_open_one_out(package, frame):
    env = environment(package, live=True, clock=closing(frame[:1_000]))
    past = environment(package)
    assert env.get_tactical_actions(frame[:1_001]) == past.get_tactical_actions(frame[:1_000])
    assert env.decision(SYSTEM).time == past.decision(SYSTEM).time


def test_live_refuses_a_stale_bar(package, frame):
    fresh = environment(package, live=True, clock=closing(frame[:1_000], 2.5))
    fresh.get_tactical_actions(frame[:1_000])
    env = environment(package, live=True, clock=closing(frame[:1_000], 3.5))
    with refuses("last closed bar is of .*; 3 bars have closed since"):
        env.get_tactical_actions(frame[:1_000])


def test_live_refuses_a_hole_in_the_warmup(package, frame):
    holed = frame[:1_000].drop(frame.index[980])
    env = environment(package, live=True, clock=closing(holed))
    with refuses("Bars are missing before"):
        env.get_tactical_actions(holed)
    env.get_tactical_actions(frame[:1_000])  # filled: nothing of the refusal stays


def test_live_takes_holes_that_lie_further_back(package, frame):
    holed = frame[:1_000].drop(frame.index[300])
    environment(package, live=True, clock=closing(holed)).get_tactical_actions(holed)


@pytest.mark.parametrize("column", ["Open", "Close", "Volume"])
def test_live_refuses_a_bar_that_is_no_number(package, frame, column):
    bad = frame[:1_000].astype({"Volume": float})
    bad.loc[999, column] = np.nan
    env = environment(package, live=True, clock=closing(bad))
    with refuses("Of the newest .* bars 1 are bad .not a number; row 999"):
        env.get_tactical_actions(bad)


def test_closed_bars_must_not_change(package, frame):
    env = environment(package)
    env.get_tactical_actions(frame[:1_000])
    changed = frame[:1_001].copy()
    changed.loc[999, ["Close", "High"]] += 5
    with refuses("lack that of .* as it was decided on"):
        env.get_tactical_actions(changed)
    with refuses("lack that of"):
        env.get_tactical_actions(frame[:990])


# as a program


def run_program(package, *arguments):
    """Run `deploy_model.py` of a package in this process; return its status."""
    return bundle.deployed().deploy_program.main(arguments, package)


@pytest.fixture
def follow(package, tmp_path, monkeypatch):
    """Run `--follow` while a file and the time change; return status and the ledger at each moment.

    A moment is what the file then holds, a frame or text, or None for no change, and a clock; it
    lasts three looks at the file.
    """

    def run(*moments):
        data, out, left, ledgers = tmp_path / "bars.csv", tmp_path / "out.csv", list(moments), []
        looks, clock = 0, closing(moments[0][0])

        def begin(content, then):
            nonlocal clock
            clock = then
            if content is not None:
                text = content if isinstance(content, str) else content.to_csv(index=False)
                data.write_text(text)

        def sleep(_):
            nonlocal looks
            looks += 1
            if looks % 3 == 0:
                ledgers.append(out.read_text().splitlines())
                if not left:
                    raise KeyboardInterrupt
                begin(*left.pop(0))

        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(time, "time_ns", lambda: int(clock() * 1e9))
        begin(*left.pop(0))
        status = run_program(package, "--data", str(data), "--out", str(out), "--follow")
        return status, ledgers

    return run


def ledger(package, frame, tmp_path):
    """Return the rows of the ledger over a file that does not grow."""
    data, out = tmp_path / "whole.csv", tmp_path / "whole_ledger.csv"
    frame.to_csv(data, index=False)
    assert run_program(package, "--data", str(data), "--out", str(out)) == 0
    return out.read_text().splitlines()


def test_a_followed_file_gives_the_ledger_of_the_whole_file(package, frame, follow, tmp_path):
    """A bar that is still open, or half written, is decided on once, when it is whole."""
    forming = frame[:1_001].copy()
    forming.loc[1_000, ["Close", "High"]] += 50
    then = closing(frame[:1_001])
    status, ledgers = follow(
        (forming, closing(frame[:1_000], 0.5)),
        (frame[:1_001].to_csv(index=False)[:-4], then),
        (frame[:1_001], then),
        (None, closing(frame[:1_001], 0.9)),
        (frame[:1_003], closing(frame[:1_003])),
    )
    assert status == 130
    ends = (1_000, 1_000, 1_001, 1_001, 1_003)
    assert ledgers == [ledger(package, frame[:end], tmp_path) for end in ends]


def test_a_bar_that_was_open_is_decided_on_when_time_has_come(package, frame, follow, tmp_path):
    """Whoever writes the file has a clock that is ahead."""
    _, ledgers = follow(
        (frame[:1_001], closing(frame[:1_001], -0.001)),
        (None, closing(frame[:1_001])),
    )
    assert ledgers == [ledger(package, frame[:end], tmp_path) for end in (1_000, 1_001)]


def test_a_followed_file_that_is_late_is_not_decided_on(package, frame, follow, tmp_path, capsys):
    late = closing(frame[:1_000], 3.5)
    _, ledgers = follow(
        (frame[:1_000], late),  # all but the last bar are history
        (frame[:1_000], closing(frame[:1_000])),
        (None, late),
        (frame[:1_001], closing(frame[:1_001], 3.5)),
        (frame[:1_005], closing(frame[:1_005])),
    )
    ends = (999, 1_000, 1_000, 1_000, 1_005)
    assert ledgers == [ledger(package, frame[:end], tmp_path) for end in ends]
    told = [line for line in capsys.readouterr().err.splitlines() if "no decision" in line]
    assert len(told) == 2  # once for each bar that is the last one
    assert "3 bars have closed since" in told[0]


def test_a_followed_file_with_a_hole_or_other_bars_is_not_decided_on(
    package, frame, follow, tmp_path, capsys
):
    begun = (frame[:1_000], closing(frame[:1_000]))
    holed = frame[:1_004].drop(frame.index[1_001])
    _, ledgers = follow(begun, (holed, closing(holed)))
    assert ledgers == 2 * [ledger(package, frame[:1_000], tmp_path)]
    assert "no decision: Bars are missing before" in capsys.readouterr().err
    changed = frame[:1_001].copy()
    changed.loc[999, ["Close", "High"]] += 5
    status, _ = follow(begun, (changed, closing(changed)))
    assert status == 2
    assert "lack that of" in capsys.readouterr().err


def test_a_file_that_cannot_be_followed_is_refused(package, tmp_path, capsys):
    for path, said in ((tmp_path, "is a directory"), (tmp_path / "none.csv", "No file")):
        assert run_program(package, "--data", str(path), "--follow") == 2
        assert said in capsys.readouterr().err


def test_only_frames_are_bars(package):
    with refuses("Expected a pandas DataFrame of bars, found list"):
        environment(package).get_tactical_actions([1, 2, 3])


def test_teams_must_be_loaded(frame):
    env = bundle.deployed().TradingEnvironment()
    with refuses("No strategic team is loaded; call load_strategic_agents first"):
        env.get_strategic_actions(frame)


# packages that are not whole


@pytest.fixture
def copy(package, tmp_path):
    """A package of which a file may be changed."""
    names = json.loads((package / "manifest.json").read_text())["files"]
    for name in (*names, "manifest.json"):
        shutil.copy(package / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["best_tactical_model.pth", "risk_actor.pth", "feature_state.json", "model_config.json"],
)
def test_flipped_byte_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with refuses(f"{name} is not what was exported"):
        environment(copy)


def test_missing_file_is_refused(copy):
    (copy / "execution_critic.pth").unlink()
    with refuses("execution_critic.pth is missing; copy the package again"):
        environment(copy)
    (copy / "manifest.json").unlink()
    with refuses("is no export package: it has no manifest.json"):
        environment(copy)


def test_other_system_is_refused(copy):
    env = bundle.deployed().TradingEnvironment()
    with refuses("holds a tactical team, expected a strategic one"):
        env.load_strategic_agents(copy / "best_tactical_model.pth")


def test_wrong_feature_order_is_refused(copy):
    config = json.loads((copy / "model_config.json").read_text())
    config["features"] = dict(reversed(config["features"].items()))
    replace(copy, "model_config.json", json.dumps(config).encode())
    with refuses("wants the features return_60, .* has price_sma_20, .* different exports"):
        environment(copy)


def test_networks_of_another_shape_are_refused(copy):
    config = json.loads((copy / "model_config.json").read_text())
    config["settings"]["hidden_sizes"] = [16, 16, 16]
    replace(copy, "model_config.json", json.dumps(config).encode())
    with refuses("not of the shape that model_config.json states"):
        environment(copy)


def test_networks_that_answer_otherwise_are_refused(copy):
    import io

    import torch

    model = torch.load(copy / "best_tactical_model.pth", weights_only=True)
    model["actors"][1]["state_dict"]["net.0.weight"][0, 0] += 1
    stream = io.BytesIO()
    torch.save(model, stream)
    replace(copy, "best_tactical_model.pth", stream.getvalue())
    with refuses("risk: logits differ from the trained network's"):
        environment(copy)


def replace(package, name, content):
    """Change a file and the manifest with it."""
    import hashlib

    (package / name).write_bytes(content)
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (package / "manifest.json").write_text(json.dumps(manifest))
