"""The oracle of a generated market: its exact filter, with band, sizes and pace from training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from gm_jax.report import policies
from gm_jax.report.backtest import backtest_many
from gm_jax.report.metrics import session_closes, session_returns, sharpe_ratio
from gm_jax.run.setup import Setup
from gm_jax.settings import Settings


BANDS = np.arange(0, 0.9, 0.1)  # of the oracle's hysteresis


def fit_oracle(setup: Setup) -> policies.Bayes | None:
    """Choose the oracle's band, sizes and pace by its Sharpe ratio on the training split.

    The Bayes filter itself has nothing to fit. None where no filter is known, or where training is
    too short for a Sharpe ratio.
    """
    world, span = setup.loaded.world, setup.split.train
    if world is None or world.belief is None:
        return None
    sizes = list(_sizes(world.below, setup.settings))
    rules = itertools.product(BANDS, sizes, (False, True))
    bands, pairs, work = zip(*rules, strict=True)
    high, low = np.array(pairs).T
    bayes = policies.Bayes(
        belief=jnp.asarray(world.belief, dtype=jnp.float32),
        band=jnp.asarray(bands, dtype=jnp.float32),
        high=jnp.asarray(high, dtype=jnp.int32),
        low=jnp.asarray(low, dtype=jnp.int32),
        work=jnp.asarray(work),
    )
    axes = bayes.replace(belief=None, band=0, high=0, low=0, work=0)
    team = setup.system.team
    curves, _ = backtest_many(policies.oracle, bayes, axes, span, setup.market, setup.params, team)
    start, session = int(setup.params.start_equity), setup.loaded.bars.session[slice(*span)]
    closes = session_closes(start, curves, session)
    scores = [sharpe_ratio(returns) for returns in session_returns(closes)]
    if all(score is None for score in scores):
        return None
    best = int(np.argmax([-np.inf if s is None else s for s in scores]))
    return bayes.replace(
        band=bayes.band[best],
        high=bayes.high[best],
        low=bayes.low[best],
        work=bayes.work[best],
    )


def _sizes(below: str, settings: Settings) -> Iterator[tuple[int, int]]:
    """Yield what the oracle may hold while its belief is high, and while it is low, contracts.

    Whole numbers of small lots: `follow` reaches each from each.
    """
    small = settings.lots_small
    for high in range(small, settings.max_contracts + 1, small):
        if below == "less":
            yield from ((high, low) for low in range(0, high + 1, small))
        else:
            yield high, -high if below == "short" and settings.allow_short else 0


def why_none(setup: Setup) -> str:
    """Say why there is no oracle."""
    world = setup.loaded.world
    if world is None:
        return "the best policy is known on generated markets only"
    if world.flat_is_best:
        return "nothing can be earned here: flat is best"
    if world.belief is None:
        return "no best policy is known for this market"
    return "the training split is too short to choose its band and size"
