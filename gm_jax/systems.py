"""The systems: recipes that name bars, team and settings; the trainer serves any of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gm_jax.env import tactical
from gm_jax.env.core import Team
from gm_jax.settings import Settings


@dataclass(frozen=True)
class System:
    """A recipe: bar length, team of agents and default settings."""

    name: str
    minutes: int
    team: Team
    settings: Settings = field(compare=False)

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents, in the order of every agent axis."""
        return self.team.AGENTS

    @property
    def actions(self) -> tuple[str, ...]:
        """The action names by id."""
        return self.team.ACTIONS


TACTICAL = System("tactical", 5, tactical, Settings())

SYSTEMS = {system.name: system for system in (TACTICAL,)}
