"""One team on one account, a bar at a time: what training's environment does, without JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from gm_jax.deploy.feed import Bar
from gm_jax.env import account, strategic, tactical
from gm_jax.env.team import settle, start
from gm_jax.env.types import CLOSE, Bounds, Order, State
from gm_jax.env.units import env_params
from gm_jax.errors import UserError


TEAMS: Mapping[str, Any] = {"tactical": tactical, "strategic": strategic}
ILLEGAL = -1e9  # logit of what may not be done, as in training

MONEY = ("equity", "session_equity", "peak")  # what may be synced beside position and controls

Logits = Callable[[np.ndarray], np.ndarray]  # [A, O] f32 -> [A, K] f32


class Seen(NamedTuple):
    """What the team sees at the close of a bar."""

    bar: Bar
    state: State
    bounds: Bounds
    logits: np.ndarray  # [A, K] f32, illegal actions at a large negative value


class Decision(NamedTuple):
    """What the team decided at the close of a bar, and the account it saw."""

    time: int  # ns UTC, open of the bar
    actions: np.ndarray  # [A] i32
    target: int  # contracts, the position that the order aims at
    position: int  # contracts
    equity: int  # cents


class Trader:
    """A paper account that the team trades by the environment's own rules.

    Args:
        system: name of the team.
        settings: of the run, by name.
        episode_length: of the run, bars.
        logits: the actors: raw features and role value in, logits out.
    """

    def __init__(
        self, system: str, settings: Mapping[str, Any], episode_length: int, logits: Logits
    ) -> None:
        named: Any = SimpleNamespace(**settings)
        self.team = TEAMS[system]
        self.params: Any = env_params(named, episode_length)
        self.state: State | None = None
        self._logits = logits
        self._order: Order | None = None
        self._last: Bar | None = None
        self._truth: dict[str, Any] = {}

    def step(
        self, bar: Bar, mandate: tuple[float, float] = (-1.0, 1.0), *, newest: bool = True
    ) -> Decision:
        """Fill the order at the bar's open, mark the account at its close, and decide.

        Args:
            bar: the next one; the first finds a flat account.
            mandate: least and most position admitted, shares of the maximum.
            newest: whether what was synced is of this bar's close; at the bars before it, which
                were missed, the account is held to the same.
        """
        seen = self.look(bar, mandate, newest=newest)
        return self.decide(seen, seen.logits.argmax(axis=1).astype(np.int32))

    def look(self, bar: Bar, mandate: tuple[float, float], *, newest: bool = True) -> Seen:
        """Carry the account to the close of the bar and ask the actors; nothing is decided."""
        market = self._market(bar, mandate)
        state = self._arrive(market)
        if self._truth:
            state = self._corrected(state, market)
        if newest:
            self._truth = {}
        bounds = account.bounds(state, market, self.params)
        roles = self.team.role_values(state, self.params)
        inputs = np.empty((len(roles), len(bar.features) + 1), np.float32)
        inputs[:, :-1], inputs[:, -1] = bar.features, roles
        logits = self._logits(inputs)
        legal = self.team.masks(state, bounds, self.params)
        return Seen(bar, state, bounds, np.where(legal, logits, np.float32(ILLEGAL)))

    def decide(self, seen: Seen, actions: np.ndarray) -> Decision:
        """Turn actions [A] into the order that the next bar fills."""
        state = seen.state
        order = self.team.compose(state, actions.tolist(), seen.bounds, self.params)
        self.state, self._order, self._last = state, order, seen.bar
        return Decision(
            time=seen.bar.time,
            actions=actions,
            target=int(state.position + order.trade),
            position=int(state.position),
            equity=int(state.equity),
        )

    def _market(self, bar: Bar, mandate: tuple[float, float]) -> Any:
        """Return the last bar and this one as the market that the simulator reads."""
        last, shares = self._last or bar, tuple(map(np.float32, mandate))
        return SimpleNamespace(
            bars=(last.row, bar.row),
            impact=(last.impact, bar.impact),
            atr=(last.atr, bar.atr),
            signals=(last.signals, bar.signals),
            mandate=(shares, shares),
        )

    def _arrive(self, market: Any) -> Any:
        """Return the account at the close of the new bar, index 1 of the market."""
        if self.state is None or self._order is None:
            first: Any = 1
            return start(first, self.params, self.team)
        state, _ = settle(self.state.replace(t=0), self._order, market, self.params, self.team)
        return state

    def sync(self, **truth: Any) -> None:
        """Put the broker's truth in the place of the paper account's, at the next decision.

        Args:
            truth: `position` (contracts), `equity`, `session_equity`, `peak` (USD), and controls
                of the team by name, e.g. `desired`, `limit`.

        Raises:
            UserError: an unknown name, or a value that no account can have.
        """
        controls = vars(self.team.initial(self.params))
        known = ("position", *MONEY, *controls)
        for name, value in truth.items():
            if name not in known:
                raise UserError(f"sync knows no {name!r}; it takes {', '.join(known)}.")
            whole = name not in MONEY
            if not np.isfinite(value) or (whole and value != int(value)):
                kind = "a whole number" if whole else "USD"
                raise UserError(f"sync: {name} is {value!r}, expected {kind}.")
        most = int(self.params.max_contracts)
        if abs(truth.get("position", 0)) > most:
            raise UserError(
                f"sync: position {truth['position']} is beyond the {most} contracts that the team "
                "was trained to hold; reduce it by hand first."
            )
        self._truth |= truth

    def _corrected(self, state: Any, market: Any) -> Any:
        """Return the account with what was synced, and its limits judged anew."""
        truth = self._truth
        cents = {k: round(truth[k] * 100) for k in MONEY if k in truth}
        controls = {k: int(v) for k, v in truth.items() if k in vars(state.controls)}
        if "position" in truth:
            state = self._holding(int(truth["position"]), state, market)
            if self.state is None:  # a fresh paper account: what is held is what is wanted
                controls = {"desired": state.position} | controls
        if self.state is None and "equity" in cents:
            cents = {"session_equity": cents["equity"], "peak": cents["equity"]} | cents
        if self.state is not None and "equity" in cents:  # what only the paper lost closes nothing
            state = state.replace(closed=self.state.closed)
        state = state.replace(**cents, controls=state.controls.replace(**controls))
        state = state.replace(peak=max(state.peak, state.equity))
        halted = account.below(state.equity, state.session_equity, self.params.daily_loss)
        closed = account.closing_reason(state, market.bars[1][CLOSE], self.params)
        return state.replace(halted=state.halted | halted, closed=closed)

    def _holding(self, position: int, state: Any, market: Any) -> Any:
        """Return the account with another position; where it is larger the stop is set anew."""
        held, after = int(state.position), state.replace(position=position)
        if abs(position) <= abs(held) and position * held > 0:
            return after
        close, atr = market.bars[1][CLOSE], market.atr[1]
        stop = account.stop_price(after.position, close, atr, self.params)
        return after.replace(stop=int(stop))
