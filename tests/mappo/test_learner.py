"""The training program: what it draws, how it compiles, what it carries."""

import dataclasses
import logging
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import arrays, core
from gm_jax.mappo import learner, networks, value_norm
from gm_jax.mappo.rollout import collect
from gm_jax.mappo.validation import segment_score
from tests.mappo import probes
from tests.mappo.problems import planted_setup


pytestmark = pytest.mark.usefixtures("quick_compiler")


def fresh(setup, seed=0):
    return learner.init_state(jax.random.key(seed), setup.market, setup.params, setup.config)


def run(setup, state=None, iterations=1):
    state = fresh(setup) if state is None else state
    return learner.train(
        state,
        jnp.int32(iterations),
        setup.market,
        setup.params,
        setup.hyper,
        setup.segments,
        config=setup.config,
    )


@pytest.mark.parametrize("critic", ["central", "local"])
def test_ratio_is_one_at_the_first_minibatch(critic):
    _, metrics = run(planted_setup(critic=critic))
    assert metrics["ratio_error"][0].max() < 1e-5
    assert metrics["approx_kl"][0].max() > 0  # and the policy did move afterwards


def test_the_state_is_donated():
    """Or a run would need the memory of two."""
    setup = planted_setup()
    state = fresh(setup)
    after, _ = run(setup, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_initialisation_decomposes_one_matrix_at_a_time():
    """Batched QR decompositions that run side by side can block each other for good."""
    setup = planted_setup()
    program = str(
        jax.make_jaxpr(learner.init_state, static_argnums=3)(
            jax.random.key(0), setup.market, setup.params, setup.config
        )
    )
    decomposed = re.findall(r"^ *\w+:f32\[([\d,]+)\] .*= (?:qr|geqrf)\[", program, re.MULTILINE)
    assert decomposed
    assert all(shape.count(",") == 1 for shape in decomposed), decomposed


def test_no_masked_action_in_a_million():
    """500 rollouts of 8 · 50 steps with three agents, and masks that do forbid something."""
    setup = planted_setup(num_envs=64, rollout_length=100, allow_short=True)
    state = fresh(setup)
    draws = illegal = forbidden = 0

    @jax.jit
    def count(env, key):
        env, rollout, _ = collect(
            state.replace(env=env), key, setup.market, setup.params, setup.config
        )
        chosen = jnp.take_along_axis(rollout.mask, rollout.action[..., None], axis=-1)
        return env, (~chosen).sum(), (~rollout.mask).sum(), chosen.size

    env = state.env
    for key in jax.random.split(jax.random.key(5), 53):
        env, bad, closed, size = count(env, key)
        illegal, forbidden, draws = illegal + bad, forbidden + closed, draws + size
    assert draws >= 1_000_000
    assert forbidden > draws / 10
    assert illegal == 0


def test_a_rollout_comes_to_the_sum_of_its_steps():
    setup = planted_setup(num_envs=8, rollout_length=30, episode_length=60)
    state, team = fresh(setup), setup.system.team
    env, rollout, totals = collect(
        state, jax.random.key(1), setup.market, setup.params, setup.config
    )
    move = jax.vmap(partial(core.step, market=setup.market, params=setup.params, team=team))
    played, outcomes = jax.lax.scan(move, state.env, rollout.action)
    np.testing.assert_array_equal(played.equity, env.equity)  # nobody began anew
    np.testing.assert_array_equal(totals.cost, outcomes.fill.cost.sum(0))
    assert totals.cost.max() > 0
    for name, term in outcomes.terms.items():
        np.testing.assert_allclose(totals.terms[name], term.sum(0), rtol=1e-4, atol=1e-3)
        assert np.any(totals.terms[name] != 0), name


def test_agents_environments_and_steps_draw_independently():
    """All five actions legal and as likely: any two draw the same in a fifth of the cases."""
    config, _, params, _ = probes.problem(num_envs=100, episode_length=100, rollout_length=100)
    world = probes.market(np.zeros(probes.BARS), np.zeros(probes.BARS))
    state = learner.abstract_state(world, params, config)
    actor = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.networks.actor)
    env = core.reset_many(jax.random.key(0), config.num_envs, world, params, config.system.team)
    state = state.replace(env=env, networks=state.networks.replace(actor=actor))
    _, rollout, _ = collect(state, jax.random.key(1), world, params, config)
    action = np.asarray(rollout.action)
    for axis in range(3):  # steps, environments, agents
        rows = np.moveaxis(action, axis, 0).reshape(action.shape[axis], -1)
        same = (rows[:, None] == rows).mean(axis=-1)[np.triu_indices(len(rows), 1)]
        deviation = (0.2 * 0.8 / rows.shape[1]) ** 0.5
        np.testing.assert_allclose(same, 0.2, atol=8 * deviation)


def test_entropy_and_log_probs_ignore_masked_actions():
    logits = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    mask = jnp.array([[True, False, True, False]])
    masked = jnp.where(mask, logits, networks.ILLEGAL)
    log_prob, entropy = networks.log_probs(masked, jnp.array([2]))
    legal = np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum()
    np.testing.assert_allclose(log_prob, np.log(legal[1]), rtol=1e-6)
    np.testing.assert_allclose(entropy, -(legal * np.log(legal)).sum(), rtol=1e-6)


def test_gradients_of_log_probs_leave_masked_actions_alone_and_scatter_nothing():
    logits = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    mask = jnp.array([[True, False, True, False]])

    def summed(x, which):
        masked = jnp.where(mask, x, networks.ILLEGAL)
        return networks.log_probs(masked, jnp.array([2]))[which].sum()

    legal = np.array([[np.exp(1.0), 0, np.exp(3.0), 0]]) / np.exp([1.0, 3.0]).sum()
    of_log_prob = jax.grad(summed)(logits, 0)
    np.testing.assert_allclose(of_log_prob, np.eye(4)[[2]] - legal, rtol=1e-6)
    of_entropy = jax.grad(summed)(logits, 1)
    assert np.isfinite(of_entropy).all()
    assert (of_entropy[~mask] == 0).all()
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(summed), static_argnums=1)(logits, 0))


def test_compiles_once_for_traced_settings_data_and_seed(caplog):
    """Change every traced number, the bars and the seed: no second compilation."""
    setup = planted_setup()
    other = planted_setup(data_seed=1)  # same shapes, other bars

    def compilations(call):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
            result = call()
        messages = [record.getMessage() for record in caplog.records]
        return result, [m for m in messages if "Finished XLA compilation of jit(train)" in m]

    jax.clear_caches()
    assert len(compilations(lambda: run(setup))[1]) == 1

    def shifted(tree):
        return jax.tree.map(
            lambda x: ~x if x.dtype == bool else x + 1 if x.dtype == jnp.int32 else x * 0.9, tree
        )

    params = shifted(setup.params).replace(episode_length=setup.params.episode_length)
    changed = dataclasses.replace(
        setup,
        hyper=shifted(setup.hyper),
        params=params,
        market=other.market,
        segments=other.segments,
    )
    fresh_state = fresh(changed, seed=7)
    (_, metrics), compiled = compilations(lambda: run(changed, fresh_state))
    assert compiled == []
    assert np.isfinite(metrics["reward"][0]).all()


def test_no_array_constant_in_the_program():
    """Bars and parameters are arguments; a captured array would show as a dense literal."""
    setup = planted_setup()
    text = learner.train.lower(
        fresh(setup),
        jnp.int32(1),
        setup.market,
        setup.params,
        setup.hyper,
        setup.segments,
        config=setup.config,
    ).as_text()
    literals = re.findall(r'dense<"0x([0-9A-F]+)">|dense<\[([^>]*)\]>', text)
    longest = max((len(a) // 8 if a else b.count(",") + 1 for a, b in literals), default=0)
    assert longest <= 8  # small tables such as (0, 1, …) may be written out
    assert len(setup.market.bars) == 6_000


def test_interval_length_does_not_change_a_bit():
    """Four iterations in one launch equal four launches of one."""
    setup = planted_setup()
    together, _ = run(setup, iterations=4)
    apart = fresh(setup)
    for _ in range(4):
        apart, _ = run(setup, apart)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_array_equal(jax.device_get(_raw(a)), jax.device_get(_raw(b)))


def _raw(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_only_a_higher_score_on_validation_replaces_the_best():
    """Neither what is newest nor what earned more in training."""
    setup = planted_setup()
    setup = dataclasses.replace(setup, hyper=setup.hyper.replace(validate_every=jnp.int32(1)))
    before = jax.device_get(fresh(setup).networks)

    def after(score):
        state = fresh(setup)
        best = state.best.replace(score=jnp.float32(score))
        state, metrics = run(setup, state.replace(best=best))
        return state, float(metrics["selection_score"][0])

    state, score = after(-np.inf)
    validate = jax.jit(segment_score, static_argnames="config")
    anew, _ = validate(
        state.networks.actor, setup.market, setup.params, setup.segments, config=setup.config
    )
    np.testing.assert_allclose(score, anew, rtol=1e-3, atol=1e-6)
    for held, replaced in ((score - 0.01, True), (score, False), (score + 0.01, False)):
        state, _ = after(held)
        assert state.best.score == (score if replaced else held)
        assert state.best.iteration == replaced
        wanted = state.networks if replaced else before
        for a, b in zip(jax.tree.leaves(state.best.networks), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(a, b)


def test_agents_past_the_target_kl_stop_alone():
    """With a KL target of nearly zero nobody's policy moves after the first minibatch."""
    setup = planted_setup(target_kl=1e-12)
    before = jax.device_get(fresh(setup).networks.actor)
    state, metrics = run(setup)
    # the very first minibatch has KL 0 up to rounding, so at most that one counts
    assert metrics["stopped"][0].min() > 0.4
    free, _ = run(planted_setup(target_kl=10.0))
    moved = lambda nets: sum(  # noqa: E731
        float(np.abs(a - b).sum())
        for a, b in zip(
            jax.tree.leaves(before), jax.tree.leaves(jax.device_get(nets.actor)), strict=True
        )
    )
    assert moved(state.networks) < moved(free.networks) / 2


@pytest.mark.parametrize("critic", ["central", "local"])
def test_micro_batches_change_an_update_by_no_more_than_rounding(critic):
    setup = planted_setup(critic=critic)
    assert setup.config.micro_batches == 1  # 200 rows are few
    parted = dataclasses.replace(
        setup, config=dataclasses.replace(setup.config, micro_rows=60, num_rollouts=1)
    )
    assert parted.config.micro_batches == 4
    whole = dataclasses.replace(setup, config=dataclasses.replace(setup.config, num_rollouts=1))
    (state, metrics), (wanted, expected) = run(parted), run(whole)
    for a, b in zip(jax.tree.leaves(state.networks), jax.tree.leaves(wanted.networks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert metrics.keys() == expected.keys()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), metrics, expected)


def test_gradients_of_micro_batches_come_to_those_of_the_minibatch():
    setup = planted_setup()
    state, hyper = fresh(setup), setup.hyper
    _, rollout, _ = collect(state, jax.random.key(1), setup.market, setup.params, setup.config)
    batch, _ = learner.prepare(state.networks, rollout, hyper, setup.config)
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:200], batch)
    parted = dataclasses.replace(setup.config, micro_rows=60)
    found, wanted = (
        learner.gradients(state.networks, batch, jnp.float32(0.01), hyper, config)
        for config in (parted, setup.config)
    )
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted[0])) > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, wanted)


@pytest.mark.parametrize(
    ("rows", "count"), [(500, 1), (501, 3), (2_000, 4), (16_000, 32), (1_009, 1), (998, 2)]
)
def test_a_minibatch_falls_into_equal_micro_batches_that_are_not_tiny(rows, count):
    """1,009 is a prime: rows one by one would be slow."""
    config = dataclasses.replace(
        planted_setup().config, num_envs=rows, rollout_length=2, num_minibatches=2, micro_rows=500
    )
    assert config.micro_batches == count


def test_value_norm_has_the_moments_of_its_returns():
    rng = np.random.default_rng(0)
    norm = value_norm.init(3)
    returns = jnp.asarray(rng.normal([5, -3, 0], [2, 10, 0.5], (2_000, 3)), dtype=jnp.float32)
    norm = value_norm.update(norm, returns, 0.99)  # debiased: one update already suffices
    mean, deviation = value_norm.moments(norm)
    np.testing.assert_allclose(mean, [5, -3, 0], atol=0.5)
    np.testing.assert_allclose(deviation, [2, 10, 0.5], rtol=0.1)
    np.testing.assert_allclose(
        value_norm.denormalise(norm, value_norm.normalise(norm, returns)), returns, atol=1e-4
    )


def test_targets_are_in_the_units_of_the_values_beside_them():
    """No reward and a critic that says the mean: the losses of both updates by hand."""
    setup = planted_setup()
    half, none = jnp.float32(0.5), jnp.float32(0)
    hyper = setup.hyper.replace(gamma=half, gae_lambda=none, lr_critic=none, value_norm_decay=half)
    params = setup.params.replace(max_leverage=none)  # nothing can be bought
    setup = dataclasses.replace(setup, hyper=hyper, params=params)
    state = fresh(setup)
    norm = state.networks.value_norm
    norm = norm.replace(mean=norm.mean + 3, square=norm.square + 13, weight=norm.weight + 1)
    critic = jax.tree.map(jnp.zeros_like, state.networks.critic)
    state = state.replace(networks=state.networks.replace(critic=critic, value_norm=norm))
    _, metrics = run(setup, state)

    mean, square, losses = 3.0, 13.0, []
    for _ in range(setup.config.num_rollouts):
        target = 0.5 * mean
        losses.append(0.5 * (target - mean) ** 2 / (square - mean**2))
        mean, square = (mean + target) / 2, (square + target**2) / 2
    assert (metrics["reward"][0] == 0).all()
    np.testing.assert_allclose(metrics["critic_loss"][0], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["return_mean"][0], mean, rtol=1e-4)


def test_windows_start_only_where_no_hole_or_roll_follows():
    setup = planted_setup()
    rng = np.random.default_rng(0)
    bars, length = setup.loaded.bars, setup.episode_length
    broken = {k: rng.random(len(bars)) < 0.002 for k in ("hole", "roll")}
    bars = dataclasses.replace(bars, **broken)
    market = arrays.build_market(bars, setup.settings, setup.system.team, setup.split.train, length)
    env = core.reset_many(jax.random.key(0), 2_000, market, setup.params, setup.system.team)
    first, end = setup.split.train
    assert env.t.min() >= first
    assert env.t.max() + length < end
    breaks = np.cumsum(broken["hole"] | broken["roll"])
    starts = np.unique(env.t)
    assert (breaks[starts + length] == breaks[starts]).all()
    clean = [t for t in range(first, end - length) if breaks[t + length] == breaks[t]]
    assert 0 < len(clean) < 0.9 * (end - first)
    assert len(starts) > 0.9 * min(len(clean), 2_000) * (1 - np.exp(-2_000 / len(clean)))
