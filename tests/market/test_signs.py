"""Random signs: the direction is gone, everything else is the market's own."""

import time
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_jax.errors import UserError
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import minute_of_session
from gm_jax.market.paths import streams
from gm_jax.market.signs import _mirrored, random_signs
from gm_jax.market.synthetic import clock, generate
from tests.market.statistics import autocorrelation, statistics


TRAIN = (500, 6_000)
PRICES = ("open", "high", "low", "close")


@pytest.fixture(scope="module")
def planted():
    return generate("planted", bars=8_000, minutes=30, seed=1).bars


@pytest.fixture(scope="module")
def real_like():
    """Gaps, tails, clustering and a season; holes and rolls are marked here and there."""
    bars = generate("realistic", bars=20_000, minutes=30, seed=2).bars
    rng = np.random.default_rng(0)
    return replace(bars, hole=rng.random(20_000) < 0.002, roll=rng.random(20_000) < 0.002)


def fine(bars):
    """The same bars on ticks so small that rounding does not matter."""
    return replace(bars, tick=2.0**-24)


def returns(bars):
    """[T] log return from the last close, from the open at a roll and at the first bar."""
    before = np.append(bars.open[0], bars.close[:-1])
    return np.log(bars.close / np.where(bars.roll, bars.open, before))


def signs(T, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], T)


def assert_same(a, b):
    for f in fields(Bars):
        np.testing.assert_array_equal(getattr(a, f.name), getattr(b, f.name), err_msg=f.name)


def loop(bars, sign, m):
    """The definition, bar by bar."""
    rows = []
    for t in range(len(bars)):
        o, h, low, c = (float(getattr(bars, name)[t]) for name in PRICES)
        s, b = float(sign[t]), np.log(c / o)
        if t == 0:
            begin = o
        else:
            g = np.log(o / bars.close[t - 1])
            begin = rows[-1][3] * np.exp(g if bars.roll[t] else s * g)
        end = begin * np.exp(s * b + (1 - s) * m)
        top, bottom = (h / o, low / o) if s > 0 else (o / low, o / h)
        rows.append(
            [begin, max(begin, end, begin * top), min(begin, end, begin * bottom), end],
        )
    return np.round(np.array(rows) / bars.tick) * bars.tick


# the definition


@pytest.mark.parametrize("mean", [0.0, 2e-4, -3e-3])
def test_equals_the_definition_bar_by_bar(real_like, mean):
    bars, sign = real_like[:3_000], signs(3_000)
    found = np.transpose([getattr(_mirrored(bars, sign, mean), name) for name in PRICES])
    np.testing.assert_allclose(found, loop(bars, sign, mean), rtol=0, atol=bars.tick)
    assert np.mean(found != loop(bars, sign, mean)) < 1e-3  # where halves of a tick are rounded
    exact = np.transpose([getattr(_mirrored(fine(bars), sign, mean), name) for name in PRICES])
    np.testing.assert_allclose(exact, loop(fine(bars), sign, mean), rtol=1e-11)


def test_returns_less_their_mean_keep_their_size(real_like):
    r, copy = returns(real_like), random_signs(fine(real_like), TRAIN, 3)
    m = r[slice(*TRAIN)].mean()
    ratio = (returns(copy) - m) / (r - m)
    np.testing.assert_allclose(abs(ratio), 1, atol=1e-6)
    assert 0.48 < np.mean(ratio > 0) < 0.52
    on_ticks = returns(random_signs(real_like, TRAIN, 3))
    low = np.minimum(real_like.close, random_signs(real_like, TRAIN, 3).close)
    assert np.all(abs(on_ticks - returns(copy)) < 1.1 * real_like.tick / low)


def test_signs_up_give_the_bars_back(real_like):
    assert_same(_mirrored(real_like, np.ones(len(real_like)), 1e-4), real_like)


def test_turned_twice_the_bars_come_back(real_like):
    sign = signs(len(real_like))
    for mean in (0.0, 1e-4):
        there = _mirrored(fine(real_like), sign, mean)
        back = _mirrored(there, sign, mean)
        bounded = mean == 0  # else drift may have widened a bar on the way
        for name in PRICES if bounded else ("open", "close"):
            np.testing.assert_allclose(
                getattr(back, name), getattr(real_like, name), rtol=0, atol=0.25, err_msg=name
            )


def test_all_turned_is_the_mirror_image(planted):
    """Without drift a price path turned everywhere is its reciprocal."""
    copy = _mirrored(fine(planted), -np.ones(len(planted)), 0.0)
    start = planted.open[0]
    for ours, theirs in zip(PRICES, ("open", "low", "high", "close"), strict=True):
        expected = start**2 / getattr(planted, theirs)
        np.testing.assert_allclose(getattr(copy, ours), expected, rtol=1e-9, err_msg=ours)


def test_roll_gaps_are_carried_over_and_nobody_earns_them(real_like):
    copy = random_signs(fine(real_like), TRAIN, 5)
    other = random_signs(fine(gapped(real_like)), TRAIN, 5)
    np.testing.assert_allclose(returns(other), returns(copy), rtol=0, atol=1e-9)
    roll = np.flatnonzero(real_like.roll[1:]) + 1
    before, after = (np.log(b.open[roll] / b.close[roll - 1]) for b in (gapped(real_like), other))
    assert len(roll) > 20 and abs(before).min() > 0.005
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)


def gapped(bars):
    """Another contract from each roll on, 1 % dearer."""
    factor = 1.01 ** np.cumsum(bars.roll)
    return replace(bars, **{name: getattr(bars, name) * factor for name in PRICES})


def test_time_volume_and_flags_stay(real_like):
    copy = random_signs(real_like, TRAIN, 0)
    for f in fields(Bars):
        if f.name not in PRICES:
            np.testing.assert_array_equal(getattr(copy, f.name), getattr(real_like, f.name))
    assert copy.open[0] == real_like.open[0]


def test_the_mean_is_that_of_the_training_bars(planted):
    """Where nothing moved, a turned bar moves by twice the mean that was taken."""
    c = planted.close.copy()
    c[4_000:] = c[3_999]
    still = replace(planted, open=np.append(planted.open[0], c[:-1]), close=c)
    still = replace(still, high=np.maximum(still.open, c), low=np.minimum(still.open, c))
    m = returns(still)[1_000:3_000].mean()
    found = returns(random_signs(fine(still), (1_000, 3_000), 0))[4_000:]
    turned = abs(found) > abs(m)
    assert 0.45 < turned.mean() < 0.55
    np.testing.assert_allclose(found[turned], 2 * m, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[~turned], 0, atol=1e-9)


# what goes and what stays


def test_a_seed_decides_and_a_longer_market_begins_with_the_shorter(planted):
    copy = random_signs(planted, TRAIN, 7)
    assert_same(random_signs(planted, TRAIN, 7), copy)
    assert_same(random_signs(planted[:7_000], TRAIN, 7), copy[:7_000])
    assert not np.array_equal(random_signs(planted, TRAIN, 8).close, copy.close)
    market = streams(7)("shock").random(8_000) < 0.5  # the seed of a market is no seed of its signs
    assert abs(np.corrcoef(market, returns(copy) > 0)[0, 1]) < 0.05


def test_signs_are_independent_of_each_other_and_of_the_market(real_like):
    r = returns(real_like)
    m = r[slice(*TRAIN)].mean()
    found = np.array(
        [
            np.sign((returns(random_signs(fine(real_like), TRAIN, k)) - m) / (r - m))
            for k in range(8)
        ]
    )
    noise = 4 / np.sqrt(len(r))
    off = np.corrcoef(found)[np.triu_indices(8, 1)]  # between seeds
    assert abs(off).max() < noise
    for s in found:
        assert abs(s.mean()) < noise
        assert max(abs(autocorrelation(s, k)) for k in (1, 2, 3, 46)) < noise
        assert abs(np.corrcoef(s, np.sign(r - m))[0, 1]) < noise


def test_drift_stays(real_like):
    bars = fine(real_like)
    r, first, end = returns(bars), *TRAIN
    m, N = r[first:end].mean(), 60
    found = np.array([returns(random_signs(bars, TRAIN, k)) for k in range(N)])
    error = (r[first:end] - m).std() / np.sqrt(N * (end - first))
    assert abs(found[:, first:end].mean() - m) < 3 * error
    # bar by bar: as many up as down, so the mean over seeds is m whatever the bar did
    z = (found.mean(axis=0) - m) / (abs(r - m) / np.sqrt(N))
    assert abs(z.mean()) < 4 / np.sqrt(len(r))
    assert z.std() == pytest.approx(1, abs=0.03)


def test_seasons_clustering_and_tails_stay(real_like):
    usual = statistics(real_like)
    for seed in range(3):
        copy = random_signs(real_like, TRAIN, seed)
        found = statistics(copy)
        for name in (
            *("sd bp", "annual volatility", "median abs return bp", "hill index"),
            *("excess kurtosis", "season of volatility", "season of volume", "opening volatility"),
            *(
                "corr volume abs return",
                "range over body",
                "break gap p95 bp",
                "weekend gap p50 bp",
            ),
        ):
            assert found[name] == pytest.approx(usual[name], rel=0.03), name
        for lag in ("1", "10", "session"):
            name = f"abs autocorrelation {lag}"
            assert found[name] == pytest.approx(usual[name], abs=0.005), name
        size, ours = abs(returns(real_like)), abs(returns(copy))
        slot = minute_of_session(real_like.time) // 30
        for k in range(46):
            assert ours[slot == k].mean() == pytest.approx(size[slot == k].mean(), rel=0.03)


def momentum_gain(bars, half_life=20):
    """Mean of the sign of past returns times the next one, in standard errors of no skill."""
    x = returns(bars)
    r = x - x.mean()
    weight = 0.5 ** (np.arange(200) / half_life)
    trend = np.convolve(r, weight)[: len(r) - 1]
    gain = np.sign(trend) * r[1:]
    return gain.mean() / gain.std() * np.sqrt(len(gain))


def test_a_rule_that_earns_on_the_market_earns_nothing_on_its_copies(planted):
    assert momentum_gain(planted) > 5
    N = 200
    z = np.array([momentum_gain(random_signs(planted, TRAIN, seed)) for seed in range(N)])
    assert abs(z.mean()) < 3 / np.sqrt(N)
    assert z.std() == pytest.approx(1, abs=0.2)
    assert z.max() < momentum_gain(planted)


# valid bars, limits, speed


@st.composite
def markets(draw):
    """Any bars on ticks, with holes, rolls and signs."""
    rows = draw(
        st.lists(
            st.tuples(*[st.integers(4_000, 100_000)] * 4, st.booleans(), st.booleans()),
            min_size=1,
            max_size=12,
        )
    )
    quotes, T = np.sort(np.array([row[:4] for row in rows]), axis=1), len(rows)
    tick = draw(st.sampled_from([0.25, 0.1, 0.01, 1.0]))
    swap = np.array([row[4] for row in rows])  # open above close or below
    low, a, b, high = quotes.T * tick
    bars, session = clock(T, 30)
    roll = np.array([row[5] for row in rows])
    return Bars(
        *(bars, np.where(swap, a, b), high, low, np.where(swap, b, a), np.ones(T), session),
        *(roll, roll[::-1], 30, tick),
    )


@settings(max_examples=300, deadline=None)
@given(markets(), st.integers(0, 2**32), st.floats(-0.02, 0.02))
def test_any_market_gives_valid_bars(bars, seed, mean):
    sign = signs(len(bars), seed)
    try:
        copy = _mirrored(bars, sign, mean)
    except UserError:
        far = loop(bars, sign, mean)[:, [0, 3]]
        assert far.min() < 1 + bars.tick or far.max() > 1e7 - bars.tick
        return
    prices = np.stack([copy.open, copy.high, copy.low, copy.close])
    ticks = prices / bars.tick
    np.testing.assert_allclose(ticks, np.rint(ticks), rtol=1e-12)
    assert ticks.min() >= 1
    assert np.all(copy.high == prices.max(axis=0)) and np.all(copy.low == prices.min(axis=0))
    assert len(copy) == len(bars)


def test_a_copy_that_leaves_the_prices_is_refused(planted):
    with pytest.raises(UserError, match=r"leaves 1 to 10,000,000 points at bar \d"):
        _mirrored(planted, -np.ones(len(planted)), 5e-3)
    with pytest.raises(UserError, match="use another seed"):
        _mirrored(planted, -np.ones(len(planted)), -5e-3)
    with pytest.raises(UserError):
        _mirrored(planted, -np.ones(len(planted)), 1.0)  # more than a float can hold


def test_one_bar(planted):
    for seed in range(4):
        assert len(random_signs(planted[:1], (0, 1), seed)) == 1


def test_speed():
    bars = generate("realistic", bars=40_000, minutes=30, seed=0).bars
    start = time.perf_counter()
    random_signs(bars, (0, 28_000), 0)
    assert time.perf_counter() - start < 0.5
