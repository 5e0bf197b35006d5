"""The names of features: `stem_N_M`, a registered function and its whole-number lengths."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from gm_jax.market.ops import Ops, Value
from gm_jax.market.readers import Warmup


LONGEST = 99_999  # bars

REGISTRY: dict[str, Callable[..., Value]] = {}


def feature(function: Callable[..., Value]) -> Callable[..., Value]:
    """Register a feature under its function's name (`return_` as `return`)."""
    REGISTRY[function.__name__.rstrip("_")] = function
    return function


@dataclass(frozen=True)
class Feature:
    """A feature with its lengths."""

    function: Callable[..., Value]
    lengths: dict[str, int]

    def read(self, x: Ops) -> Value:
        """Evaluate the feature with a reader of the language."""
        return self.function(x, **self.lengths)

    @property
    def warmup(self) -> int:
        """Index of the first usable bar."""
        age: int = self.read(Warmup()).bars
        return age

    @property
    def definition(self) -> str:
        """Definition and unit, one line."""
        return define(self.function, self.lengths)


def parameters(stem: str) -> list[inspect.Parameter]:
    """Return the lengths that a feature takes."""
    return list(inspect.signature(REGISTRY[stem]).parameters.values())[1:]


def form(stem: str) -> str:
    """Return a name with placeholders, such as `macd_FAST_SLOW_SIGNAL`."""
    return "_".join([stem, *(p.name.upper() for p in parameters(stem))])


def define(function: Callable[..., Value], lengths: dict[str, int] | dict[str, str]) -> str:
    """Return the first line of a feature's docstring with its lengths filled in."""
    return (function.__doc__ or function.__name__).splitlines()[0].format(**lengths)


def parse(name: str) -> Feature:
    """Turn a name such as `macd_12_26_9` into a feature.

    Raises:
        ValueError: no such feature, or lengths it cannot take; the message says what would do.
    """
    match = re.fullmatch(r"([a-z_]*?)((?:_[0-9]+)*)", name)
    stem, tail = (match[1], match[2]) if match else (name, "")
    if stem not in REGISTRY:
        near = difflib.get_close_matches(stem, REGISTRY, n=1)
        hint = (
            f"did you mean {near[0] + tail!r}?" if near else f"known: {', '.join(sorted(REGISTRY))}"
        )
        raise ValueError(f"unknown feature {name!r}; {hint}")
    takes = parameters(stem)
    given = [int(n) for n in tail.split("_")[1:]]
    needed = sum(p.default is p.empty for p in takes)
    if not needed <= len(given) <= len(takes) or not all(0 < n <= LONGEST for n in given):
        numbers = f", whole numbers from 1 to {LONGEST}" if takes else ", without lengths"
        raise ValueError(
            f"feature {name!r} has lengths that do not fit; expected {form(stem)}{numbers}"
        )
    defaults = [p.default for p in takes[len(given) :]]
    lengths = dict(zip((p.name for p in takes), given + defaults, strict=True))
    found = Feature(REGISTRY[stem], lengths)
    try:
        found.read(Warmup())
    except ValueError as error:
        raise ValueError(f"feature {name!r}: {error}") from None
    return found
