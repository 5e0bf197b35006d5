"""What a trainer has learnt so far: figures and pictures."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.report import learning_plots, plots, team_plots
from gm_jax.run import evaluation
from gm_jax.run.progress import in_notebook
from gm_jax.trainer.engine import Engine


RECENT = 100  # episodes of avg_reward_100


class Episode(NamedTuple):
    """What an episode came to; it compares with a number by its reward."""

    reward: float  # bp a window, shared by the team, mean over the environments
    steps: int  # of all environments

    def _holds(self, other: object, order: Callable[[Any, Any], bool]) -> bool:
        if isinstance(other, tuple):
            return order(tuple(self), other)
        return order(self.reward, other)

    def __lt__(self, other: object) -> bool:
        return self._holds(other, lambda a, b: a < b)

    def __le__(self, other: object) -> bool:
        return self._holds(other, lambda a, b: a <= b)

    def __gt__(self, other: object) -> bool:
        return self._holds(other, lambda a, b: a > b)

    def __ge__(self, other: object) -> bool:
        return self._holds(other, lambda a, b: a >= b)


class Learnt:
    """The part of a trainer that looks back; a row of its history is an episode."""

    engine: Engine

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics of each episode, as `metrics.jsonl` has them."""
        return self.engine.history

    @property
    def episode_rewards(self) -> list[float]:
        """Reward of the team in each episode, bp a window, mean over the environments."""
        return [row["terms"]["equity"] for row in self.history]

    @property
    def episode_lengths(self) -> list[int]:
        """Bars of a window in each episode."""
        steps = np.diff([row["env_steps"] for row in self.history], prepend=0)
        return [int(x) for x in steps // self.engine.settings.num_envs]

    @property
    def actor_losses(self) -> list[float]:
        """Loss of the actors in each episode, mean over the team."""
        return [_mean([*row["actor_loss"].values()]) for row in self.history]

    @property
    def critic_losses(self) -> list[float]:
        """Loss of the critic in each episode, mean over the team."""
        return [_mean([*row["critic_loss"].values()]) for row in self.history]

    @property
    def training_stats(self) -> dict[str, Any]:
        """What `get_training_stats` returns."""
        return self.get_training_stats()

    def get_training_stats(self) -> dict[str, Any]:
        """Return where the training stands; NaN where nothing is known yet."""
        engine, rewards = self.engine, self.episode_rewards
        best = None if engine.state is None else engine.state.best
        score, sharpe = (math.nan, math.nan) if best is None else (best.score, best.sharpe)
        seconds = engine.train_seconds or math.nan
        return {
            "episodes": engine.episodes,
            "planned_episodes": engine.planned,
            "total_steps": self.history[-1]["env_steps"] if self.history else 0,
            "best_reward": max(rewards, default=math.nan),
            "avg_reward_100": _mean(rewards[-RECENT:]),
            "latest_reward": _mean(rewards[-1:]),
            "actor_loss": _mean(self.actor_losses[-1:]),
            "critic_loss": _mean(self.critic_losses[-1:]),
            "best_episode": 0 if best is None else int(best.iteration),
            "best_validation_score": float(score) if math.isfinite(score) else math.nan,
            "best_validation_sharpe": float(sharpe),
            "env_steps_per_second": engine.trained_steps / seconds,
            "compile_seconds": engine.compile_seconds,
        }

    def get_agent_rewards(self, agent_idx: int) -> np.ndarray:
        """Return the reward of one agent in each episode, its own terms included, [episodes] bp.

        Raises:
            UserError: no such agent.
        """
        agents = self.engine.system.agents
        if not 0 <= agent_idx < len(agents):
            raise UserError(
                f"agent_idx is {agent_idx}, expected 0 to {len(agents) - 1}: {', '.join(agents)}."
            )
        return np.array([row["reward"][agents[agent_idx]] for row in self.history])

    def plot_training_progress(self, save_path: str | Path | None = None) -> Figure:
        """Draw rewards, validation and losses over the episodes; a notebook shows it.

        Args:
            save_path: PNG to write.
        """
        engine = self.engine
        on = f" on {Path(engine.dataset.source.label).name}" if engine.dataset else ""
        figure = learning_plots.learning_curves(self.history, f"{engine.system.name}{on}")
        return _shown(figure, save_path)

    def plot_agent_coordination(self, save_path: str | Path | None = None) -> Figure:
        """Draw which actions the agents take together on validation, and what each is worth.

        It is played by the best networks; a notebook shows it.

        Args:
            save_path: PNG to write.

        Raises:
            UserError: nothing was trained yet.
        """
        setup, state = self.engine.trained()
        networks, span = learner.chosen(state), setup.split.validation
        with self.engine.placed():
            figure = team_plots.coordination(
                evaluation.team_ledger(setup, networks, span),
                setup.system.agents,
                setup.system.actions,
                evaluation.agent_contributions(setup, networks, span),
                "validation: how the agents act together",
            )
        return _shown(figure, save_path)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _shown(figure: Figure, path: str | Path | None) -> Figure:
    """Return a figure, saved if there is a path and shown in a notebook."""
    if path is not None:
        plots.save(figure, Path(path))
    if in_notebook():
        picture = BytesIO()
        figure.savefig(picture, dpi=80)
        display: Any = importlib.import_module("IPython.display")
        display.display(display.Image(picture.getvalue()))
    return figure
