"""From settings and bars to a program: features by name, and what they are scaled by."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.env import core
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.run import record
from gm_jax.run.setup import prepare
from gm_jax.run.source import Source, load
from gm_jax.systems import TACTICAL
from tests.mappo.problems import SMALL, planted_setup


NAMES = ("rsi_14", "crisis_5520", "time_of_day", "ewma_momentum_20", "volume_zscore_20")


def test_features_by_name_shape_the_program():
    setup = planted_setup(features=NAMES)
    assert setup.market.features.shape == (6_000, len(NAMES))
    assert np.isfinite(setup.market.features).all()
    world = (setup.market, setup.params)
    state = learner.abstract_state(*world, setup.config)
    one = jax.eval_shape(lambda env: jax.tree.map(lambda leaf: leaf[0], env), state.env)
    observed = jax.eval_shape(partial(core.observe, team=TACTICAL.team), one, *world)
    assert observed.obs.shape == (3, len(NAMES) + 1)
    program = partial(learner.train, config=setup.config)
    rest = (setup.hyper, setup.segments)
    jax.eval_shape(program, state, jnp.int32(1), *world, *rest)  # every shape of training fits


def test_scaler_of_training_bars_leaves_constants_alone():
    setup = planted_setup(features=NAMES)
    first, end = setup.split.train
    seen = np.asarray(setup.market.features)[first:end]
    deviation = seen.std(axis=0)
    assert deviation[1] == 0  # no window of 5,520 bars is full in training
    assert [w.split()[0] for w in setup.warnings] == ["crisis_5520"]
    np.testing.assert_allclose(setup.market.scale, np.where(deviation, deviation, 1), rtol=1e-5)
    np.testing.assert_allclose(setup.market.mean, seen.mean(axis=0), atol=1e-5)


def test_regimes_leave_a_short_file_trainable(shared_data):
    settings = TACTICAL.settings.replace(**SMALL)
    loaded = load(Source(data=str(shared_data / "NQ - 5 min - ETH.csv")), settings, 5)
    plain, more = (
        prepare(TACTICAL, settings.replace(features=names), loaded)
        for names in (("rsi_14",), ("rsi_14", "crisis_5520", "bull_trend_5520", "time_of_day"))
    )
    assert (more.warmup, more.split) == (plain.warmup, plain.split)
    assert set(np.unique(more.market.features[:, 1])) <= {0, -1}


@pytest.mark.parametrize("features", [("rsi_14",), ("rsi_14", "crisis_300")])
def test_bars_without_a_regime_are_counted(features):
    """Those that reports call NORMAL, whether the networks see a regime or none."""
    setup = planted_setup(features=features)
    counted = record.model_config(setup, Source(market="planted"))["unlabelled_bars"]
    assert counted.pop("regime_5520") == 20 + 5_520
    assert counted == ({"crisis_300": 320} if "crisis_300" in features else {})
    assert not setup.regimes[: 20 + 5_520].any()
    first, end = setup.split.test
    assert first < 5_540 < end
    assert setup.unlabelled(setup.split.test) == 5_540 - first
    assert setup.unlabelled((5_600, end)) == 0
    assert setup.unlabelled(setup.split.train) == np.diff(setup.split.train)


def test_features_that_do_not_exist_are_explained():
    with pytest.raises(UserError, match=r"`features`: feature 'crisis' .* expected crisis_LENGTH"):
        planted_setup(features=("crisis",))
