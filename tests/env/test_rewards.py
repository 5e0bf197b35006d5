"""Rewards: worth nothing on a martingale, and exactly what the account did."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from gm_jax.env import account, core, stances, strategic, tactical
from gm_jax.env.types import CLOSE, OPEN, REGULAR, ROLL, SESSION_START, TRADED
from gm_jax.report.policies import draw
from gm_jax.settings import Settings
from tests.env import worlds
from tests.env.replay import BEAR_TREND, BULL_TREND, CONSOLIDATION, CRISIS, NORMAL, VOLATILE
from tests.mappo.probes import market


ENVS, STEPS = 256, 400
TRAINING = 1_000_000  # bars that the laws of the stances are fitted on
PRICE = 60_000
TEAMS = {"tactical": tactical, "strategic": strategic}
FREE = {"commission_usd": 0.0, "spread_ticks_regular": 0, "spread_ticks_other": 0, "impact": 0.0}
COSTLY = {"impact": 2.0, "max_drawdown": 0.006, "daily_loss": 0.002}
WEIGHTS = {
    **{"reward_drawdown": 0.3, "reward_shortfall": 0.7, "reward_stance": 0.4},
    "risk_aversion": 0.01,
}
# takes a crisis for quiet and the other way round
MISTAKEN = (NORMAL, BULL_TREND, BEAR_TREND, CONSOLIDATION, VOLATILE, CRISIS)


def clustered(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, ...]:
    """Draw symmetric gaps and moves (ticks), fat-tailed and with spells of quiet and storm.

    Returns gaps, moves and what the regime features might call the spell at each bar.
    """
    changes = rng.random(shape) < 0.05
    changes[..., 0] = True
    since = np.maximum.accumulate(np.where(changes, np.arange(shape[-1]), 0), axis=-1)
    drawn = rng.integers(0, 6, shape)
    spell = np.take_along_axis(drawn, since, axis=-1)
    scale = np.array([1.0, 1.0, 1.0, 3.0, 2.0, 0.4])[spell]
    gaps, moves = (np.rint(rng.standard_t(3, shape) * size * scale).astype(int) for size in (5, 8))
    return gaps, moves, spell


def signals_of(gaps: np.ndarray, moves: np.ndarray, spell: np.ndarray) -> np.ndarray:
    """Return the strategic team's signals, [..., 3]: the return is in units of 10 ticks."""
    volatility = np.array([0.12, 0.12, 0.12, 0.3, 0.2, 0.06])[spell]
    return np.stack([volatility, (gaps + moves) / 10, spell], axis=-1)


@lru_cache
def martingales() -> tuple[np.ndarray, np.ndarray]:
    """Draw a path per environment: bars [ENVS, STEPS + 1, 6] and signals [ENVS, STEPS + 1, 3]."""
    rng = np.random.default_rng(0)
    gaps, moves, spell = clustered(rng, ENVS, STEPS + 1)
    close = PRICE + np.cumsum(gaps + moves, axis=1)
    open_ = close - moves
    signals = signals_of(gaps, moves, spell)
    gaps[:, 0] = 0
    # one bar in thirty has no volume: the order waits
    flags = TRADED * (rng.random(gaps.shape) > 0.03) + REGULAR
    flags[:, ::50] |= SESSION_START
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    return np.stack([open_, high, low, close, gaps, flags], axis=2), signals


@lru_cache
def law() -> stances.Law:
    """Fit the stances on a long path of its own."""
    return stances.fit(signals_of(*clustered(np.random.default_rng(1), TRAINING)), (0, TRAINING))


@partial(jax.jit, static_argnums=0)
def _play(team, key, bars, signals, told, law, params):
    """Random legal actions, a path per environment; nothing is reset.

    Where the third agent is `told` a stance (−1: none), it takes that.
    """

    @jax.vmap
    def one(key, bars, signals, told):
        zero = np.zeros(STEPS + 1, dtype=int)
        world = market(zero, zero).replace(bars=bars, impact=jnp.full(STEPS + 1, 0.5))
        world = world.replace(signals=signals, law=law, starts=jnp.zeros_like(world.starts))
        first, rest = jax.random.split(key)
        state = core.reset(first, world, params, team)

        def body(state, key):
            mask = team.masks(state, account.bounds(state, world, params), params)
            actions = draw(jax.random.bits(key, (3,), dtype=jnp.uint32), mask)
            if team is strategic:
                stance = told[state.t]
                verb = jnp.where(stance == state.controls.stance, 0, 1 + stance)
                actions = actions.at[2].set(jnp.where(stance < 0, actions[2], verb))
            after, outcome = core.step(state, actions, world, params, team)
            return after, (actions, state, after, outcome)

        return jax.lax.scan(body, state, jax.random.split(rest, STEPS))[1]

    return one(jax.random.split(key, ENVS), bars, signals, told)


@lru_cache
def play(team, allow_short, detector="random", **changes):
    params = worlds.params_of(Settings(allow_short=allow_short, **changes))
    bars, signals = martingales()
    spell = signals[..., stances.REGIME].astype(int)
    told = {
        "random": np.full_like(spell, -1),
        "knows": spell,
        "mistaken": np.array(MISTAKEN)[spell],
    }[detector]
    paths = jnp.asarray(bars, jnp.int32), jnp.asarray(signals, jnp.float32)
    paths += (jnp.asarray(told, jnp.int32),)
    return jax.device_get(_play(TEAMS[team], jax.random.key(1), *paths, law(), params))


def z_score(x) -> float:
    """Return sum / √(sum of squares): standard normal for martingale differences."""
    x = np.asarray(x, dtype=np.float64)
    return x.sum() / np.sqrt((x**2).sum())


@pytest.mark.parametrize("allow_short", [False, True])
@pytest.mark.parametrize(
    ("team", "term"), [("tactical", "equity"), ("tactical", "shortfall"), ("strategic", "equity")]
)
def test_nothing_is_earned_on_a_martingale_without_costs(team, term, allow_short):
    actions, before, after, outcome = play(team, allow_short, **FREE)
    reward = outcome.terms[term]
    assert abs(z_score(reward)) < 3
    # nor by any single verb, nor by trading or waiting, which are known before the reward
    verbs = range(len(TEAMS[team].ACTIONS))
    groups = {f"{a} {k}": actions[..., a] == k for a in range(3) for k in verbs}
    wanted = after.controls.desired != before.position
    groups |= {"wanted": wanted, "not wanted": ~wanted, "closed": before.closed != 0}
    groups |= {"long": before.position > 0, "short": before.position < 0}
    z = {name: z_score(reward[at]) for name, at in groups.items() if (reward[at] != 0).any()}
    assert len(z) >= 15
    assert max(map(abs, z.values())) < 4, z
    # the test could tell a bonus of 0.1 bp an order from nothing
    bonus = reward + 0.1 * (outcome.fill.traded != 0)
    assert z_score(bonus) > 5


@pytest.mark.parametrize("team", TEAMS)
def test_costs_are_the_only_drift(team):
    """With costs the mean is minus the costs, within the noise."""
    _, before, after, outcome = play(team, True, **COSTLY)
    costs = outcome.fill.cost * 1e4 / before.equity[0, 0]
    assert z_score(outcome.terms["equity"]) < -3
    assert abs(z_score(outcome.terms["equity"] + costs)) < 3
    assert (after.closed != 0).any()
    assert after.halted.any()


@pytest.mark.parametrize("allow_short", [False, True])
@pytest.mark.parametrize("team", TEAMS)
def test_terms_are_what_the_account_did(team, allow_short):
    actions, before, after, outcome = play(team, allow_short, **COSTLY, **WEIGHTS)
    fill, terms = outcome.fill, dict(outcome.terms)
    start = 10_000_000
    gained = (after.equity.astype(np.int64) - before.equity) * 1e4 / start
    equity = terms.pop("equity")
    np.testing.assert_allclose(equity, gained, rtol=1e-6)
    total = (after.equity[:, -1] - before.equity[:, 0]) * 1e4 / start
    np.testing.assert_allclose(equity.sum(1, dtype=np.float64), total, atol=1e-3)

    fallen = [1 - s.equity.astype(np.float64) / s.peak for s in (before, after)]
    increase = np.maximum(fallen[1] - fallen[0], 0) * 1e4
    drawdown = terms.pop("drawdown")
    assert (drawdown <= 0).all()
    np.testing.assert_allclose(drawdown, -increase, atol=2e-3)
    assert (increase > 1).mean() > 0.05

    bars, signals = martingales()
    if team == "tactical":
        # shortfall: each contract wanted, against the price at the decision
        decision = bars[:, :-1, CLOSE]
        flat = before.halted | (before.closed != 0)
        wanted = np.where(flat, 0, after.controls.desired) - before.position
        paid = fill.traded * (bars[:, 1:, OPEN] - decision)
        missed = (wanted - fill.traded) * (bars[:, 1:, CLOSE] - decision)
        shortfall = -((paid + missed) * 50 + fill.cost) * 1e4 / start
        np.testing.assert_allclose(terms.pop("shortfall"), shortfall, rtol=1e-5, atol=1e-5)
        assert (fill.traded[actions[..., 2] == 0] == 0).mean() > 0.5
    else:
        # stance: as taken in this decision, of the bar that follows it
        held = np.where(actions[..., 2] > 0, actions[..., 2] - 1, before.controls.stance)
        fitted = law()
        laws = (fitted.mean, fitted.deviation, fitted.centre)
        mean, deviation, centre = (np.asarray(x, np.float64) for x in laws)
        move = signals[:, 1:, 1]
        ratio = norm.logpdf(move, mean[held], deviation[held])
        ratio = np.clip(ratio - norm.logpdf(move, mean[6], deviation[6]), -2, 2)
        np.testing.assert_allclose(terms.pop("stance"), ratio - centre[held], rtol=1e-4, atol=1e-4)
        assert (np.abs(ratio) == 2).mean() > 0.01
        assert (np.abs(ratio) < 1).mean() > 0.5
    assert not terms


RECEIVED = {
    "tactical": {"risk": ("drawdown", 0.3), "execution": ("shortfall", 0.7)},
    "strategic": {"portfolio_manager": ("drawdown", 0.3), "regime_detector": ("stance", 0.4)},
}


@pytest.mark.parametrize("allow_short", [False, True])
@pytest.mark.parametrize("team", TEAMS)
def test_reward_by_agent_is_shared_plus_weighted_terms(team, allow_short):
    *_, outcome = play(team, allow_short, **COSTLY, **WEIGHTS)
    terms = {name: term.astype(np.float64) for name, term in outcome.terms.items()}
    shared = terms["equity"] - 0.01 * terms["equity"] ** 2
    for i, agent in enumerate(TEAMS[team].AGENTS):
        term, weight = RECEIVED[team].get(agent, ("equity", 0.0))
        wanted = shared + weight * terms[term]
        np.testing.assert_allclose(outcome.reward[..., i], wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("team", TEAMS)
def test_without_weights_all_agents_share_the_change_of_equity(team):
    zero = dict.fromkeys(WEIGHTS, 0.0)
    *_, outcome = play(team, True, **FREE, **zero)
    same = partial(np.testing.assert_array_equal, outcome.terms["equity"])
    for agent in range(3):
        same(outcome.reward[..., agent])


def test_a_roll_is_no_shortfall():
    """Neither its gap nor its cost is charged to execution; by hand on one bar."""
    from tests.env import test_actions as hand

    env = hand.params()
    world = worlds.by_hand((400, 403, 400, 403, worlds.NORMAL | ROLL))
    _, _, outcome = hand.step(hand.state(env, 2, 2), "BHb", world, env)
    # one of three bought at the open for 75 + 25 + 13 cents, two missed a rise of 3 ticks
    np.testing.assert_allclose(outcome.terms["shortfall"], -(113 + 2 * 3 * 50) / 1_000, rtol=1e-6)
    # the account: two held and one bought gain 3 ticks, less 113 and the roll's 472
    np.testing.assert_allclose(outcome.terms["equity"], (3 * 3 * 50 - 113 - 472) / 1_000, rtol=1e-5)


# -- stances ------------------------------------------------------------------------------------


def z_of_paths(term, at) -> float:
    """Return the score of a sum over independent paths: what clusters in a path counts once."""
    sums = np.where(at, term, 0).sum(1, dtype=np.float64)
    return sums.sum() / np.sqrt((sums**2).sum())


def test_a_stance_that_knows_nothing_earns_nothing():
    actions, _, after, outcome = play("strategic", True, **FREE)
    term, stance = outcome.terms["stance"], after.controls.stance
    everywhere = np.ones_like(term, dtype=bool)
    assert abs(z_of_paths(term, everywhere)) < 3
    # nor by any stance, by taking it or by keeping it; positions know the volatility, by their caps
    groups = {f"stance {s}": stance == s for s in range(6)}
    groups |= {f"verb {k}": actions[..., 2] == k for k in range(7)}
    groups |= {f"share {i}": after.controls.share == i for i in range(5)}
    z = {name: z_of_paths(term, at) for name, at in groups.items()}
    assert max(map(abs, z.values())) < 4, z
    # neither silence nor calm is paid: without the centre the wild stances would lose at once
    raw = term + np.asarray(law().centre)[stance]
    assert z_of_paths(raw, everywhere) < -5
    assert z_of_paths(raw, stance == CRISIS) < -5


def test_a_stance_that_knows_the_spell_earns_and_one_that_is_mistaken_pays():
    _, _, after, outcome = play("strategic", True, "knows", **FREE)
    term, stance = outcome.terms["stance"], after.controls.stance
    np.testing.assert_array_equal(stance, martingales()[1][:, :-1, 2])
    for named in (CRISIS, VOLATILE, CONSOLIDATION):
        assert z_of_paths(term, stance == named) > 5
    assert term.mean() > 0.05
    _, _, after, outcome = play("strategic", True, "mistaken", **FREE)
    term, stance = outcome.terms["stance"], after.controls.stance
    for named in (CRISIS, CONSOLIDATION):
        assert z_of_paths(term, stance == named) < -5


def test_laws_are_the_moments_of_the_next_bar_by_regime():
    """By NumPy and scipy's densities; a regime of fewer than 30 bars has everybody's law."""
    rng = np.random.default_rng(2)
    sizes = {NORMAL: 400, BULL_TREND: 29, BEAR_TREND: 30, CRISIS: 60, CONSOLIDATION: 100}
    regime = rng.permutation(np.repeat(list(sizes), list(sizes.values())))
    first, end = 50, 50 + len(regime) + 1
    signals = np.full((end + 70, 3), np.nan)  # what lies outside the training bars is not read
    follows = np.append(0, np.where(regime == CRISIS, 3, 0.2 * (1 + regime)))
    signals[first:end, 1] = rng.standard_normal(end - first) * follows + 0.1
    signals[first:end, 2] = np.append(regime, VOLATILE)  # what follows the last is not training
    fitted = jax.device_get(stances.fit(signals, (first, end)))

    moves = signals[first + 1 : end, 1]
    samples = [moves[regime == s] for s in range(6)]
    samples = [x if len(x) >= 30 else moves for x in samples] + [moves]
    np.testing.assert_allclose(fitted.mean, [x.mean() for x in samples], rtol=1e-5)
    np.testing.assert_allclose(fitted.deviation, [x.std() for x in samples], rtol=1e-5)
    everybody = norm.logpdf(moves, moves.mean(), moves.std())
    for s in range(6):
        ratio = norm.logpdf(moves, samples[s].mean(), samples[s].std()) - everybody
        clipped = np.clip(ratio, -2, 2)
        assert abs(fitted.centre[s] - clipped.mean()) < 1e-5
        ours = stances.log_ratio(fitted, jnp.int32(s), jnp.asarray(moves, jnp.float32))
        np.testing.assert_allclose(ours, clipped - clipped.mean(), atol=1e-4)
        assert abs(np.mean(ours)) < 1e-5
    for rare in (BULL_TREND, VOLATILE):
        assert (fitted.mean[rare], fitted.deviation[rare]) == (fitted.mean[6], fitted.deviation[6])
        assert fitted.centre[rare] == 0
    assert fitted.deviation[BEAR_TREND] != fitted.deviation[6]


def test_stance_by_hand():
    """Three decisions: the stance as taken counts, and the return of the bar that follows."""
    quiet = (0, 0, 0, 0, worlds.NORMAL)
    world = worlds.by_hand(*[quiet] * 3)
    signals = world.signals.at[:4, stances.RETURN].set(jnp.float32([9.0, 2.0, -0.5, 4.0]))
    world = world.replace(signals=signals.at[:, stances.VOLATILITY].set(0.1))
    fitted = stances.Law(
        mean=jnp.float32([0, 0.5, -0.5, -1, 0, 0, 0]),
        deviation=jnp.float32([1, 1, 1, 2, 1, 1, 1]),
        centre=jnp.float32([0, 0.1, 0.2, 0.3, 0, 0]),
    )
    world = world.replace(law=fitted)
    params = worlds.params_of(Settings(random_start=False, **WEIGHTS))
    state = core.start(jnp.int32(0), params, strategic)
    step = jax.jit(core.step, static_argnums=4)
    seen = []
    for verb in (1 + BULL_TREND, 1 + CRISIS, 0):
        state, outcome = step(state, jnp.int32([0, 0, verb]), world, params, strategic)
        seen.append(float(outcome.terms["stance"]))
        np.testing.assert_allclose(outcome.reward, [0, 0, 0.4 * seen[-1]], rtol=1e-6)
    crisis = -0.5 * 0.25**2 - np.log(2) + 0.5 * 0.5**2  # of −0.5 under N(−1, 2) against N(0, 1)
    wanted = [-0.5 * 1.5**2 + 0.5 * 2**2 - 0.1, crisis - 0.3, 2 - 0.3]  # the last is clipped
    np.testing.assert_allclose(seen, wanted, rtol=1e-5)
