"""The generated markets: what each is for, its best policy and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gm_jax.market.paths import MEAN_VOLUME, Paths
from gm_jax.market.realistic import realistic
from gm_jax.market.reversion import mean_reverting
from gm_jax.market.switching import planted, switching


# What the best policy holds where the belief is low: the mirror position where shorts are allowed
# (nothing where they are not), nothing, or a smaller position.
Below = Literal["short", "flat", "less"]
Default = float | Mapping[int, float]  # a number, or one by the minutes of a bar


@dataclass(frozen=True)
class Parameter:
    """A setting of a market: what it is unless set, what it may be and what it means."""

    default: Default
    low: float
    high: float
    meaning: str

    def default_at(self, minutes: int) -> float:
        """Return the default for bars of `minutes`."""
        return self.default if isinstance(self.default, float) else self.default[minutes]


@dataclass(frozen=True)
class Recipe:
    """How a market is made, and what for.

    `process(session [T], minutes, streams, **parameters)` returns T bars; it gets every parameter
    by name.
    """

    process: Callable[..., Paths]
    parameters: Mapping[str, Parameter]
    tests: str  # what it shows about whoever trades it
    best: str  # the best policy and how it is computed
    below: Below = "short"
    flat_is_best: bool = False


# low, high and meaning of every parameter
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "duration": (2.0, 1e6, "mean bars between changes of the state"),
    "duration_up": (2.0, 1e6, "mean bars that the favourable state lasts"),
    "duration_down": (2.0, 1e6, "mean bars that the other state lasts"),
    "kappa": (0.001, 2.0, "size of the drift, deviations of a bar"),
    "drift_up": (-2.0, 2.0, "drift in the favourable state, in its deviations of a bar"),
    "drift_down": (-2.0, 2.0, "drift in the other state, in the same deviations"),
    "volatility_ratio": (0.1, 10.0, "volatility in the other state over the favourable one's"),
    "half_life": (0.5, 1e5, "bars after which half of a deviation is left"),
    "share": (0.001, 0.999, "of a bar's variance made by the deviation"),
    "annual_volatility": (
        0.01,
        1.0,
        "of the shocks, a fraction; of the favourable state where two differ",
    ),
    "annual_drift": (-1.0, 1.0, "expected change of price in 252 sessions, a fraction"),
    "mean_volume": (0.1, 1e6, "contracts in five minutes; a bar has at least one"),
    "start_price": (1_000.0, 100_000.0, "first price, points"),
}


def _parameters(**defaults: Default) -> dict[str, Parameter]:
    return {name: Parameter(x, *_BOUNDS[name]) for name, x in defaults.items()}


def _planted(
    duration: Default,
    kappa: Default,
    mean_volume: Default = MEAN_VOLUME,
    annual_volatility: float = 0.16,
) -> dict[str, Parameter]:
    return _parameters(
        duration=duration,
        kappa=kappa,
        annual_volatility=annual_volatility,
        start_price=15_000.0,
        mean_volume=mean_volume,
    )


def _switching(
    durations: tuple[Default, Default],
    drifts: tuple[Default, Default],
    ratio: float,
    annual_volatility: Default,
    start_price: float = 15_000.0,
) -> dict[str, Parameter]:
    return _parameters(
        duration_up=durations[0],
        duration_down=durations[1],
        drift_up=drifts[0],
        drift_down=drifts[1],
        volatility_ratio=ratio,
        annual_volatility=annual_volatility,
        start_price=start_price,
        mean_volume=MEAN_VOLUME,
    )


_EASY = {5: 0.12, 30: 0.25}
_SESSION = {5: 276.0, 30: 92.0}  # bars; one session, two at 30 minutes

MARKETS: dict[str, Recipe] = {
    "planted": Recipe(
        planted,
        _planted(_SESSION, _EASY),
        tests="Whether a team finds a hidden drift that turns about once a session.",
        best="Long above a band around even odds, short or flat below it, by the two-state "
        "Hamilton filter of returns.",
    ),
    "planted_hard": Recipe(
        planted,
        _planted(_SESSION, {5: 0.05, 30: 0.11}),
        tests="The same as `planted` with a drift so small that it takes months to show.",
        best="As in `planted`: the Hamilton filter with a band, wider for the fainter signal.",
    ),
    "mean_reverting": Recipe(
        mean_reverting,
        _parameters(
            half_life={5: 12.0, 30: 8.0},
            share={5: 0.6, 30: 0.8},
            annual_volatility=0.16,
            start_price=15_000.0,
            mean_volume=MEAN_VOLUME,
        ),
        tests="Whether a team buys what has fallen: prices stray from a random walk and return.",
        best="Long where the deviation is surely negative, short or flat where it is surely "
        "positive, by the Kalman filter of returns.",
    ),
    "risk_only": Recipe(
        switching,
        _switching(
            durations=(_SESSION, _SESSION),
            drifts=(0.08, 0.02),
            ratio=4.0,
            annual_volatility={5: 0.08, 30: 0.03},
            start_price=5_000.0,
        ),
        tests="Whether risk is controlled: prices always drift up, at times little and wildly.",
        best="Long while calm and nothing while wild, by the Hamilton filter of returns; blind to "
        "risk one would stay long throughout.",
        below="flat",
    ),
    "execution_only": Recipe(
        planted,
        _planted(
            _SESSION, {5: 0.25, 30: 0.4}, mean_volume={5: 4.0, 30: 4 / 6}, annual_volatility=0.08
        ),
        tests="Whether orders are worked: so few contracts trade that large orders move the price. "
        "With lots_small=3 lots_large=3 max_contracts=3 impact=2 the desired position is all or "
        "nothing, and how it is reached is for the execution agent.",
        best="As in `planted` by the Hamilton filter, but traded contract by contract.",
    ),
    "volatility_step": Recipe(
        switching,
        _switching(
            durations=({5: 5_520.0, 30: 920.0}, {5: 5_520.0, 30: 920.0}),
            drifts=({5: 0.02, 30: 0.03}, {5: 0.02, 30: 0.03}),
            ratio=3.0,
            annual_volatility={5: 0.08, 30: 0.04},
        ),
        tests="Whether size follows risk: volatility triples for weeks under an unchanged drift.",
        best="Long throughout, fewer contracts while volatility is high by the Hamilton filter of "
        "returns.",
        below="less",
    ),
    "two_state": Recipe(
        switching,
        _switching(
            durations=(_SESSION, _SESSION),
            drifts=(_EASY, {minutes: -kappa for minutes, kappa in _EASY.items()}),
            ratio=1.5,
            annual_volatility=0.16,
        ),
        tests="As `planted`, but falling markets are wilder, so volatility tells of direction too.",
        best="Long above a band around even odds, short or flat below it, by the Hamilton filter "
        "of returns with unequal variances.",
    ),
    "realistic": Recipe(
        realistic,
        _parameters(annual_volatility=0.23, annual_drift=0.12, start_price=15_000.0),
        tests="Behaviour on prices that look like NQ: tails, clustering, gaps, hours and a drift.",
        best="None is known beyond holding for the drift; the direction is otherwise noise.",
        below="flat",
    ),
    "martingale": Recipe(
        realistic,
        _parameters(annual_volatility=0.23, start_price=15_000.0),
        tests="Whether a team stays out where nothing can be earned: `realistic` without drift.",
        best="Hold nothing: no rule on past bars has an expected gross profit, and each pays.",
        below="flat",
        flat_is_best=True,
    ),
}
