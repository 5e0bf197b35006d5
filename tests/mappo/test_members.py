"""Members trained side by side: each as if alone, in chunks, interrupted or not."""

import dataclasses
import signal
from contextlib import contextmanager
from functools import partialmethod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import core
from gm_jax.env.team import start
from gm_jax.errors import NotFiniteError, UserError
from gm_jax.mappo import learner, members
from gm_jax.mappo.validation import Segments, segment_score
from gm_jax.run import members as run_members
from gm_jax.run import memory, pace
from gm_jax.run.checkpoint import Checkpoints
from gm_jax.run.directory import RunDirectory
from gm_jax.run.members import StoppedEarlyError, axes_of, train_members
from gm_jax.run.setup import MAX_SEGMENTS
from gm_jax.run.walk_forward import fold_setups
from gm_jax.systems import TACTICAL
from tests.mappo.problems import planted_setup


pytestmark = pytest.mark.usefixtures("quick_compiler")


NAME = "several"
# teams that trade, and are scored by their Sharpe ratio
BUSY = {
    **{"initial_neutral": 0.1, "allow_short": True, "validate_every": 1},
    **{"split": (0.5, 0.3, 0.2), "lr_actor": 1e-3},
}
PROGRAMS: dict[object, jax.stages.Compiled] = {}


@contextmanager
def compiled_in_haste():
    """Compile programs in half the time; they run slower and give the same."""
    options = {"xla_backend_optimization_level": 0}
    quick = partialmethod(jax.stages.Lowered.compile, compiler_options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", quick)
        yield


def compile_once(setup, axes, size, compile_=run_members._compile):
    """Compile a program of each kind once for all tests."""
    shapes = [x.shape for x in jax.tree.leaves(run_members.arguments(setup))]
    kind = (setup.config, repr(axes), size, *shapes)
    if kind not in PROGRAMS:
        with compiled_in_haste():
            PROGRAMS[kind] = compile_(setup, axes, size)
    return PROGRAMS[kind]


@pytest.fixture
def compilations(monkeypatch):
    """Sizes of the programs that are compiled; each kind is, once, for all tests."""
    seen = []

    def counted(setup, axes, size):
        seen.append(size)
        return compile_once(setup, axes, size)

    monkeypatch.setattr(run_members, "_compile", counted)
    return seen


def padded(segments, count=MAX_SEGMENTS):
    """Return the segments and so many in all, the rest without steps."""
    more = (0, count - len(segments.first))
    return Segments(jnp.pad(segments.first, more, mode="edge"), jnp.pad(segments.steps, more))


def make(number, **changes):
    """Return one of three problems that share nothing."""
    setup = planted_setup(data_seed=number % 3, **(BUSY | changes))
    return dataclasses.replace(setup, segments=padded(setup.segments))


def worlds():
    return [make(number) for number in range(3)]


def folds(**changes):
    """Return two problems that share the bars."""
    return fold_setups(planted_setup(walk_forward=2, **(BUSY | changes)))


def fresh(setup, seed):
    return learner.init_state(jax.random.key(seed), setup.market, setup.params, setup.config)


def alone(setup, seed, iterations=1):
    """Train by the program of a single team."""
    state, count = fresh(setup, seed), jnp.int32(iterations)
    rest = run_members.arguments(setup)
    if "alone" not in PROGRAMS:
        with compiled_in_haste():
            lowered = learner.train.lower(state, count, *rest, config=setup.config)
            PROGRAMS["alone"] = lowered.compile()
    return PROGRAMS["alone"](state, count, *rest)


def numbers():
    """Return problems that share the bars and differ in what is only read of the settings."""
    changes = (
        {},
        {"lr_actor": 4e-3, "clip_eps": 0.05, "gamma": 0.9, "ent_coef": 0.1, "max_grad_norm": 0.1},
        {"commission_usd": 3.0, "max_contracts": 4, "reward_drawdown": 2.0, "stop_atr": 1.0},
    )
    setups = [make(0, **change) for change in changes]
    every = members.shared([run_members.arguments(setup) for setup in setups])
    names = ("market", "params", "hyper", "segments")
    return [
        dataclasses.replace(setup, **dict(zip(names, own, strict=True)))
        for setup, own in zip(setups, every, strict=True)
    ]


def stacked(setups):
    """Return what the members' program takes but for the state and the iterations."""
    return members.stack([run_members.arguments(setup) for setup in setups], axes_of(setups))


def together(setups, iterations=1, seeds=None):
    seeds = range(len(setups)) if seeds is None else seeds
    states = [fresh(setup, seed) for setup, seed in zip(setups, seeds, strict=True)]
    run = compile_once(setups[0], axes_of(setups), len(setups))
    return run(members.stack_states(states), jnp.int32(iterations), *stacked(setups))


def raw(tree):
    """Return NumPy leaves, keys as their data."""
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def assert_same(one, other):
    for a, b in zip(raw(one), raw(other), strict=True):
        np.testing.assert_array_equal(a, b)


# one program for all


@pytest.mark.parametrize(
    "make", [*(pytest.param(x, marks=pytest.mark.slow) for x in (folds, worlds)), numbers]
)
def test_members_learn_as_if_alone(make):
    """Two updates and a validation: the same windows, actions and money, networks within 1e-5."""
    setups = make()
    state, metrics = together(setups)
    for m, setup in enumerate(setups):
        mine, rows = alone(setup, m)
        one = members.member(state, m)
        for name in ("env", "key", "update", "iteration"):
            assert_same(getattr(one, name), getattr(mine, name))
        for name in ("networks", "actor_opt", "critic_opt", "best"):
            for a, b in zip(raw(getattr(one, name)), raw(getattr(mine, name)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
        side = jax.tree.map(lambda x, m=m: x[m, 0], metrics)
        for a, b in zip(raw(side), raw(jax.tree.map(lambda x: x[0], rows)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert len({float(score) for score in state.best.score} - {0.0}) > 1  # teams that trade


def test_what_all_share_has_no_member_axis():
    setups = folds()
    axes = members.axes_of([setup.market for setup in setups])
    shared = ("bars", "features", "impact", "atr", "signals", "mandate")
    assert {name for name in shared if getattr(axes, name) is None} == {*shared}
    assert {axes.starts, axes.num_starts, axes.mean, axes.scale} == {0}
    market = members.stack([setup.market for setup in setups], axes)
    assert market.features is setups[0].market.features
    assert market.mean.shape == (2, 6)
    state, _ = together(setups)
    assert (state.update.shape, state.iteration.shape) == ((), ())
    assert (int(state.update), int(state.iteration)) == (2, 1)
    apart = members.axes_of([setup.market for setup in worlds()])
    assert None not in jax.tree.leaves(apart.replace(law=0), is_leaf=lambda x: x is None)


def test_what_settings_share_has_no_member_axis():
    """Bars, validation and every number that none changes are stored once."""
    market, params, hyper, segments = axes_of(numbers())
    assert jax.tree.leaves((market, segments)) == []
    own = {name for name in vars(hyper) if getattr(hyper, name) == 0}
    assert own == {"lr_actor", "clip_eps", "gamma", "ent_coef", "max_grad_norm"}
    own = {name for name in vars(params) if getattr(params, name) == 0}
    assert own == {"commission", "max_contracts", "stop_atr"}
    assert params.reward_weights == {"drawdown": 0, "shortfall": None, "stance": None}


def test_equal_leaves_become_one_object():
    """Even where only those in the middle differ."""
    trees = [{"a": jnp.float32(x), "b": jnp.float32(1)} for x in (1, 2, 1)]
    found = members.shared(trees)
    assert [float(tree["a"]) for tree in found] == [1, 2, 1]
    assert found[0]["a"] is not found[2]["a"]
    assert found[0]["b"] is found[1]["b"] is found[2]["b"]
    assert members.axes_of([found[0], found[2]]) == {"a": 0, "b": None}


def test_trajectories_for_given_actions_are_those_of_one_environment():
    """Costs, limits and weights of each member: the same cents, rewards and ends, bit by bit."""
    setups, team = numbers(), TACTICAL.team
    market, axes = setups[0].market, axes_of(setups)[1]
    params = members.stack([setup.params for setup in setups], axes)
    actions = jax.random.randint(jax.random.key(0), (400, len(team.AGENTS)), 0, len(team.ACTIONS))

    def play(params):
        def step(state, action):
            after, outcome = core.step(state, action, market, params, team)
            return after, (after, outcome)

        return jax.lax.scan(step, start(jnp.int32(1_000), params, team), actions)[1]

    side = jax.jit(jax.vmap(play, in_axes=(axes,)))(params)
    for m, setup in enumerate(setups):
        mine = jax.jit(play)(setup.params)
        assert_same(jax.tree.map(lambda x, m=m: x[m], side), mine)
        assert np.abs(mine[0].position).max() == setup.settings.max_contracts
    equity = np.asarray(side[0].equity[:, -1])
    assert equity[0] == equity[1] != equity[2]  # the second differs in what is learnt with


@pytest.mark.slow  # member by member they are compared above
def test_members_come_to_what_single_trainings_come_to():
    """Other seeds side by side: the mean of what was learnt agrees within its standard error."""
    setup, other, third = numbers()

    def learnt(metrics):
        return float(metrics["terms"]["equity"][..., 6:12].mean())

    side, single = [], []
    for seed in range(6):
        _, metrics = together([setup, other, third], 12, [100 + seed, 200, 300])
        side.append(learnt(jax.tree.map(lambda x: x[0], metrics)))
        single.append(learnt(alone(setup, seed, 12)[1]))
    error = np.sqrt((np.var(side, ddof=1) + np.var(single, ddof=1)) / len(side))
    assert error > 0
    assert abs(np.mean(side) - np.mean(single)) < 3 * error


def primitives(jaxpr, inside=()):
    """Yield (name, names it lies inside) of every operation."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, inside
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, (*inside, name))


def validates_always(setups, state_axes):
    """Return whether the loop over validation's bars runs whether validation is due or not."""
    state = members.stack_states([fresh(setup, 0) for setup in setups])
    if state_axes.iteration == 0:
        wide = {name: jnp.zeros(len(setups), jnp.int32) for name in ("update", "iteration")}
        state = state.replace(**wide)

    def one(state, arguments):
        return learner.iterate(state, *arguments, setups[0].config)

    several = jax.vmap(one, in_axes=(state_axes, axes_of(setups)))
    found = list(primitives(jax.make_jaxpr(several)(state, stacked(setups)).jaxpr))
    loops = [inside for name, inside in found if name == "while"]
    assert loops
    return any("cond" not in inside for inside in loops)


def test_validation_stays_a_branch():
    setups = [make(number, num_envs=2) for number in range(2)]  # with numbers of their own
    assert not validates_always(setups, members.STATE_AXES)
    counted_apart = members.STATE_AXES.replace(update=0, iteration=0)
    assert validates_always(setups, counted_apart)  # the check can fail


def test_validation_is_left_out_when_it_is_not_due():
    _, metrics = together(folds(validate_every=2, num_episodes=4), iterations=4)
    known = np.isfinite(metrics["selection_score"][:, :4])
    np.testing.assert_array_equal(known, [[False, True, False, True]] * 2)


def test_segments_without_steps_change_no_score():
    setup = planted_setup(**BUSY)
    actor = fresh(setup, 0).networks.actor
    score = jax.jit(segment_score, static_argnames="config")
    for count in (len(setup.segments.first), 2):  # a Sharpe ratio, and too few sessions for one
        segments = jax.tree.map(lambda x, n=count: x[:n], setup.segments)
        plain, filled = (
            score(actor, setup.market, setup.params, segments, config=setup.config)
            for segments in (segments, padded(segments))
        )
        np.testing.assert_allclose(filled, plain, rtol=1e-6)
        assert np.isfinite(plain[1]) == (count > 2)
        assert abs(float(plain[0])) > 1e-3


# chunks


@pytest.fixture
def quick(monkeypatch, compilations):
    """At most three members a program, an iteration a launch; nothing is compiled twice."""
    monkeypatch.setattr(run_members, "MOST", 3)
    monkeypatch.setattr(pace, "INTERVAL_SECONDS", 0)


def trained(folder, count, make=make):
    """Return the networks of each member, by number."""
    found = {}
    for part in train_members(RunDirectory(folder), NAME, range(count), make):
        assert len(part.setups) == len(part.numbers)
        for m, number in enumerate(part.numbers):
            found[number] = jax.tree.map(lambda x, m=m: x[m], part.networks)
    return found


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The networks of five members, three at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_members, "_compile", compile_once)
        patch.setattr(run_members, "MOST", 3)
        return trained(tmp_path_factory.mktemp("five"), 5)


def test_every_chunk_runs_the_same_program(five, tmp_path, quick, compilations):
    """5 = 3 + 2: the last chunk, filled up, gives what a full one gives, bit for bit."""
    six = trained(tmp_path, 6)
    assert compilations == [3]
    assert list(six) == [0, 1, 2, 3, 4, 5]
    for number, networks in five.items():
        assert_same(networks, six[number])
    differ = [not np.array_equal(a, b) for a, b in zip(raw(six[0]), raw(six[3]), strict=True)]
    assert any(differ)  # the same bars, another seed


class Memory:
    """A program that needs so many bytes."""

    def __init__(self, needed):
        self.argument_size_in_bytes, self.temp_size_in_bytes = 0, needed

    def memory_analysis(self):
        return self


def test_chunks_are_equal(monkeypatch):
    monkeypatch.setattr(run_members, "_compile", lambda *_: Memory(1))
    monkeypatch.setattr(run_members, "MOST", 4)
    for count, size in ((1, 1), (4, 4), (5, 3), (9, 3), (10, 4)):
        assert run_members.fitting_program(make(0), make(1), count).size == size


def test_fewer_members_where_memory_is_scarce(monkeypatch, capsys):
    gib = 2**30
    monkeypatch.setattr(run_members, "_compile", lambda setup, axes, size: Memory(size * gib))
    for free, size in ((1000, 40), (40, 20), (16, 10), (0.1, 1)):
        monkeypatch.setattr(memory, "device", lambda free=free: {"free": free * gib})
        assert run_members.fitting_program(make(0), make(1), 40).size == size
        said = capsys.readouterr().err
        assert ("40 members need 40.0 GiB, fewer are trained at a time" in said) == (size < 40)


def test_needs_are_those_of_the_compiled_program(quick, monkeypatch, capsys):
    """What the program itself says, of which what is stacked exists twice, decides."""
    axes = axes_of([make(0), make(1)])
    analysis = compile_once(make(0), axes, 3).memory_analysis()
    needed = 2 * analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    bars = sum(x.nbytes for x in jax.tree.leaves(make(0).market))
    assert needed > 2 * 3 * bars
    for free, enough in ((needed / 0.7 - 1, False), (needed / 0.7 + 2, True)):
        monkeypatch.setattr(run_members, "_compile", lambda *a: compile_once(*a[:2], 3))
        frees = iter([free, 2**60])
        monkeypatch.setattr(memory, "device", lambda frees=frees: {"free": next(frees)})
        run_members.fitting_program(make(0), make(1), 3)
        assert ("3 members need" in capsys.readouterr().err) == (not enough)


def test_the_memory_that_is_free_is_known():
    assert 2**20 < memory.device()["free"] < 2**50


# interruptions


def launches(monkeypatch, interrupt_at=0, number=signal.SIGINT):
    """Count the launches from now on, and send a signal inside one of them."""
    check, seen = run_members._require_finite, []

    def counted(*arguments):
        seen.append(arguments)
        if len(seen) == interrupt_at:
            signal.raise_signal(number)
        check(*arguments)

    monkeypatch.setattr(run_members, "_require_finite", counted)
    return seen


@pytest.mark.parametrize(
    ("at", "number"), [(1, signal.SIGINT), (4, signal.SIGTERM), (6, signal.SIGINT)]
)
def test_stopped_and_continued_equals_uninterrupted(five, tmp_path, quick, monkeypatch, at, number):
    """Two chunks of 4 iterations: inside the first, at its very end, inside the last."""
    with monkeypatch.context() as patch:
        done = launches(patch, at, number)
        with pytest.raises(StoppedEarlyError):
            trained(tmp_path, 5)
        assert len(done) == at
    left = launches(monkeypatch)
    again = trained(tmp_path, 5)
    assert len(left) == 8 - at  # nothing is trained twice
    for member, networks in five.items():
        assert_same(networks, again[member])


def test_a_chunk_that_was_begun_keeps_its_size(five, tmp_path, quick, monkeypatch):
    """As with a null test, which asks no more for the copies that are done."""
    with monkeypatch.context() as patch:
        launches(patch, 6)
        with pytest.raises(StoppedEarlyError):
            trained(tmp_path, 5)
    left = launches(monkeypatch)
    sizes = [run_members._begun_size(tmp_path / NAME, n, make(n[0])) for n in ([3, 4], [3], [2, 3])]
    assert sizes == [3, None, None]  # of fewer members, or of others, it would be another chunk
    (part,) = train_members(RunDirectory(tmp_path), NAME, range(3, 5), make)
    assert len(left) == 2
    for m, number in enumerate(part.numbers):
        assert_same(five[number], jax.tree.map(lambda x, m=m: x[m], part.networks))


def test_second_signal_ends_at_once(tmp_path, quick, monkeypatch):
    def twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_members, "_require_finite", twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        trained(tmp_path, 3)
    assert signal.getsignal(signal.SIGINT) is before


def test_state_is_saved_as_time_goes_by(tmp_path, quick, monkeypatch):
    """A kill loses no more than what came after the last save."""
    saved, save = [], Checkpoints.save

    def noted(self, setup, state):
        saved.append(int(state.iteration))
        save(self, setup, state)

    monkeypatch.setattr(Checkpoints, "save", noted)
    trained(tmp_path / "seldom", 3)
    assert saved == [4]
    monkeypatch.setattr(pace, "SAVE_SECONDS", 0)
    trained(tmp_path / "often", 3)
    assert saved == [4, 1, 2, 3, 4]


def test_state_of_other_members_is_never_taken(tmp_path, quick, monkeypatch):
    seen = launches(monkeypatch)
    trained(tmp_path, 3)
    trained(tmp_path, 3)
    assert len(seen) == 4  # the same ones are
    trained(tmp_path, 3, lambda number: make(number + 1))
    assert len(seen) == 8
    trained(tmp_path, 3, lambda number: make(number, num_episodes=3))
    assert len(seen) == 11


def test_identity_of_a_chunk():
    """Filled up or full, of other bars, of another split: never the same name."""

    def name(numbers, setups=None):
        return run_members._identity(numbers, setups or [make(number) for number in numbers])

    assert name([0, 1]) == name([0, 1])
    part = dataclasses.replace(make(0).split, train=(60, 99))
    others = [
        name([1]),
        name([3]),  # of the same bars as 0
        name([0, 0]),
        name([0], [make(1)]),
        name([0], [dataclasses.replace(make(0), split=part)]),
        name([0], [make(0, num_episodes=3)]),
    ]
    assert len({name([0]), *others}) == 1 + len(others)


def test_state_that_cannot_be_read_is_told_of_and_trained_anew(
    five, tmp_path, quick, monkeypatch, capsys
):
    def damaged(*_):
        raise UserError("no whole checkpoint")

    with monkeypatch.context() as patch:
        launches(patch, 2)
        with pytest.raises(StoppedEarlyError):
            trained(tmp_path, 3)
    monkeypatch.setattr(Checkpoints, "restore", damaged)
    found = trained(tmp_path, 3)
    assert "can be used, it is trained anew" in capsys.readouterr().err
    assert_same(found[1], five[1])


def test_forgotten_members_leave_nothing(tmp_path, quick):
    trained(tmp_path, 3)
    assert (tmp_path / NAME).exists()
    run_members.forget(RunDirectory(tmp_path), NAME)
    assert not (tmp_path / NAME).exists()
    run_members.forget(RunDirectory(tmp_path), NAME)
    assert trained(tmp_path, 0) == {}


def test_key_and_watch_are_the_callers(tmp_path, quick):
    """Members that begin alike learn alike; every launch is told before the state is saved."""
    seen = []
    part = next(
        train_members(
            RunDirectory(tmp_path),
            NAME,
            [0, 3, 1],
            make,
            key=lambda number, setup: jax.random.key(7),
            watch=seen.append,
        )
    )
    one, same, other = (members.member(part.state, m).networks for m in range(3))
    assert_same(one, same)  # the same bars
    assert not np.array_equal(raw(one)[0], raw(other)[0])
    assert [(launch.done, launch.count) for launch in seen] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert {launch.chunk.numbers for launch in seen} == {(0, 3, 1)}
    assert all(launch.metrics["actor_norm"].shape[0] == 3 for launch in seen)


def test_what_is_not_finite_is_named(tmp_path, quick):
    def broken(number):
        hyper = make(number).hyper.replace(lr_actor=jnp.float32(np.nan))
        return dataclasses.replace(make(number), hyper=hyper)

    with pytest.raises(NotFiniteError, match="several: 1-3 of 3: actor_norm is not finite"):
        trained(tmp_path, 3, broken)
