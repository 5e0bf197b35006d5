"""`TradingEnvironment`: frames of bars in, actions of the newest closed bar out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from gm_jax.deploy.feed import Feed
from gm_jax.deploy.package import Package, agents, open_package
from gm_jax.deploy.trader import Decision, Trader
from gm_jax.env.team import rule_signals
from gm_jax.errors import UserError
from gm_jax.market import loader
from gm_jax.market.bars import Bars
from gm_jax.market.calendar import MINUTE, overdue
from gm_jax.market.data_report import iso


_KNOWN_BY = ("time", "open", "high", "low", "close")  # by these a bar is known again
MOST_OVERDUE = 2  # bars that may be missing at the end of a live frame


@dataclass
class Desk:
    """One team, its features and its account."""

    package: Package
    feed: Feed
    trader: Trader
    mandated: bool  # the strategic team bounds this one
    decision: Decision | None = None
    share: float = 0.0  # of the maximum, what the last decision aims at
    latency: list[float] = field(default_factory=list)  # seconds from a bar to its order

    @property
    def around_the_clock(self) -> bool:
        """Whether its market is never shut, as that was which it was trained on."""
        return bool(self.package.config["source"]["around_the_clock"])

    @classmethod
    def open(cls, path: str | Path, system: str) -> Desk:
        """Load a team.

        Raises:
            UserError: its package is not whole, or of another system.
        """
        package = open_package(Path(path), system)
        config, settings = package.config, package.config["settings"]
        trader = Trader(system, settings, config["episode_length"], package.actors.logits)
        signals = rule_signals(trader.team, config["bar_minutes"])
        feed = Feed(
            tuple(config["features"]),
            signals,
            config["bar_minutes"],
            config["warmup_bars"],
            SimpleNamespace(**settings),
        )
        if package.feature_state["stream"]["names"] != list(feed.names):
            raise UserError(
                f"{path}: its feature_state.json is of other features than this program keeps, it "
                "comes from another version: export the run again, or use its own deploy_model.py."
            )
        return cls(package, feed, trader, mandated=bool(config["source"].get("strategic")))

    def step(self, bars: Bars, mandate: tuple[float, float] = (-1.0, 1.0)) -> list[Decision]:
        """Take bars in and decide at the close of each; none before the warm-up is over.

        Args:
            bars: those that follow the last one taken.
            mandate: least and most position admitted, shares of the maximum.
        """
        made, began = [], time.perf_counter()
        for number, bar in enumerate(self.feed.take(bars), 1):
            if bar is not None:
                self.decision = self.trader.step(bar, mandate, newest=number == len(bars))
                made.append(self.decision)
                self.latency.append(time.perf_counter() - began)
            began = time.perf_counter()
        if self.decision is not None:
            most = self.package.config["settings"]["max_contracts"]
            self.share = self.decision.target / most
        return made

    def recall(self) -> None:
        """Go on from what training remembers where the last bar taken is training's last.

        A frame may know less of the past than training did.
        """
        last, state = self.feed.last, self.package.feature_state
        if all(getattr(last, name) == state["last"][name] for name in _KNOWN_BY):
            self.feed.restore(state)


class TradingEnvironment:
    """Decide as the trained teams would, from frames of all bars so far.

    Each team trades a paper account by the training environment's fill rules; `sync` puts the
    broker's truth in its place. A tactical team that was trained under a strategic one needs that
    loaded too, and asked first.

    Args:
        live: refuse stale bars and holes in the warm-up; False for bars of the past.
        tz: zone of the stamps, see `loader.load`; None finds out.
        date_format: of the stamps; None finds out.
        clock: returns the time now, seconds since 1970 UTC.
    """

    def __init__(
        self,
        live: bool = True,
        *,
        tz: str | None = None,
        date_format: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.live = live
        self._tz, self._date_format = tz, date_format
        self._clock = clock
        self._desks: dict[str, Desk] = {}

    def load_tactical_agents(self, path: str | Path) -> None:
        """Load the tactical team from its `.pth` file inside an export package."""
        self._desks["tactical"] = Desk.open(path, "tactical")

    def load_strategic_agents(self, path: str | Path) -> None:
        """Load the strategic team from its `.pth` file inside an export package."""
        self._desks["strategic"] = Desk.open(path, "strategic")

    def get_tactical_actions(self, market_data_5min: pd.DataFrame) -> dict[str, int]:
        """Return each tactical agent's action id at the last closed bar, see `decision`."""
        return self._actions("tactical", market_data_5min)

    def get_strategic_actions(self, market_data_30min: pd.DataFrame) -> dict[str, int]:
        """Return each strategic agent's action id at the last closed bar, see `decision`."""
        return self._actions("strategic", market_data_30min)

    def decision(self, system: str) -> Decision:
        """Return the newest decision: the position that it aims at, and the account it saw.

        Raises:
            UserError: there is none yet.
        """
        found = self._desk(system).decision
        if found is None:
            raise UserError(f"The {system} team has not decided yet; call get_{system}_actions.")
        return found

    def sync(self, system: str | None = None, **truth: Any) -> None:
        """Put the broker's truth in the place of the paper account's, at the next decision.

        Args:
            system: whose account; may be left out where one team is loaded.
            truth: `position` (contracts), `equity`, `session_equity`, `peak` (USD), and the team's
                controls by name, e.g. `desired`; as they stand at the close of the newest bar of
                the next frame.

        Raises:
            UserError: an unknown name, or a value that no account can have.
        """
        if system is None and len(self._desks) != 1:
            raise UserError('Two teams are loaded: say whose account, e.g. sync("tactical", …).')
        self._desk(system or next(iter(self._desks))).trader.sync(**truth)

    def _desk(self, system: str) -> Desk:
        if system not in self._desks:
            raise UserError(f"No {system} team is loaded; call load_{system}_agents first.")
        return self._desks[system]

    def _actions(self, system: str, frame: pd.DataFrame) -> dict[str, int]:
        desk = self._desk(system)
        bars = self._bars(desk, frame)
        new = following(desk, bars)
        reason = why_not_live(desk, bars, self._now()) if self.live else ""
        if reason:
            raise UserError(f"{reason}. For bars of the past make TradingEnvironment(live=False).")
        if len(new):
            if desk.decision is None:  # the paper account is opened now, not in the past
                desk.feed.skip(new[:-1])
                new = new[-1:]
            desk.step(new, self._mandate(desk))
            desk.recall()
        if desk.decision is None:
            raise UserError(
                f"The warm-up is not over: {desk.feed.bars_seen:,} bars, the first decision takes "
                f"{desk.feed.warmup + 1:,}. Hand over more of the past."
            )
        found = desk.decision
        return dict(zip(agents(desk.package.config), map(int, found.actions), strict=True))

    def _bars(self, desk: Desk, frame: pd.DataFrame) -> Bars:
        """Return the closed bars of a frame."""
        if not isinstance(frame, pd.DataFrame):
            raise UserError(f"Expected a pandas DataFrame of bars, found {type(frame).__name__}.")
        config = desk.package.config
        bars, _ = loader.load(
            frame,
            config["bar_minutes"],
            tick=config["settings"]["tick_points"],
            live=desk.feed.warmup + 1 if self.live else 0,
            around_the_clock=desk.around_the_clock,
            tz=self._tz,
            date_format=self._date_format,
        )
        if not self.live:
            return bars
        return closed_by(bars, self._now())

    def _now(self) -> int:
        return int(self._clock() * 1e9)

    def _mandate(self, desk: Desk) -> tuple[float, float]:
        """Return the least and the most position admitted, shares of the maximum."""
        if not desk.mandated:
            return -1.0, 1.0
        if "strategic" not in self._desks:
            raise UserError(
                "This tactical team was trained under a strategic one: load that too, and call "
                "get_strategic_actions before get_tactical_actions."
            )
        share = self._desks["strategic"].share
        return min(share, 0.0), max(share, 0.0)


def closed_by(bars: Bars, now: int) -> Bars:
    """Return the bars that have closed; `now` in ns UTC."""
    closes = bars.time + bars.minutes * MINUTE
    return bars[: int(np.searchsorted(closes, now, side="right"))]


def why_not_live(desk: Desk, bars: Bars, now: int) -> str:
    """Return why nothing may be decided at the last bar now, and nothing where it may.

    Args:
        desk: that would decide.
        bars: those that have closed.
        now: ns UTC.
    """
    warmup = desk.feed.warmup  # bars that a decision rests on
    if not len(bars):
        return "No bar has closed yet"
    late = overdue(int(bars.time[-1]), bars.minutes, now, desk.around_the_clock)
    if late > MOST_OVERDUE:
        last = iso(bars.time[-1])
        return f"The last closed bar is of {last}; {late} bars have closed since and are needed"
    tail = bars[-warmup:]
    holes = np.flatnonzero(tail.hole[1:]) + 1  # what lies before the first is past
    if len(holes):
        return (
            f"Bars are missing before {iso(tail.time[holes[-1]])}, inside the {warmup:,} bars "
            "that a decision rests on: fill the hole, or wait until as many bars have followed it"
        )
    return ""


def following(desk: Desk, bars: Bars) -> Bars:
    """Return the bars after the last one that was taken, restoring what training left if it fits.

    Raises:
        UserError: a bar that was decided on is gone or has changed.
    """
    last = desk.feed.last
    if last is None:
        state = desk.package.feature_state
        begins = np.searchsorted(bars.time, state["last"]["time"])
        # where none follows it, the bar to decide on is that one itself: see `Desk.recall`
        if begins + 1 < len(bars) and _same(bars, begins, state["last"]):
            desk.feed.restore(state)
            return bars[begins + 1 :]
        return bars
    at = int(np.searchsorted(bars.time, last.time))
    if at == len(bars) or not _same(bars, at, vars(last)):
        raise UserError(
            f"The bars now lack that of {iso(last.time)} as it was decided on: expected all bars "
            "so far, closed ones unchanged. Start anew to take them as they are."
        )
    return bars[at + 1 :]


def _same(bars: Bars, at: int, known: Mapping[str, Any]) -> bool:
    return all(getattr(bars, name)[at] == known[name] for name in _KNOWN_BY)
