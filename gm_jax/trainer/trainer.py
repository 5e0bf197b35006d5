"""The trainers: an engine with the names and the calls of the PyTorch trainers before it."""

from __future__ import annotations

import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from gm_jax import cache
from gm_jax.errors import UserError
from gm_jax.run import pace
from gm_jax.run.progress import Progress
from gm_jax.run.setup import static_config
from gm_jax.run.signals import first_is_a_wish
from gm_jax.settings import Settings
from gm_jax.systems import STRATEGIC, TACTICAL, System
from gm_jax.trainer import files
from gm_jax.trainer.acting import act
from gm_jax.trainer.arguments import find_device, require_sizes, settings_of
from gm_jax.trainer.data import Data
from gm_jax.trainer.engine import Engine
from gm_jax.trainer.learnt import Episode, Learnt


_ACTING = 2**31 - 2  # far from the numbers that training draws from the seed


class MAPPOTrainer(Learnt):
    """Train one of the teams; an episode is one window in every environment at once.

    Bars come with `train_episode(data=…)`, `train(n, data=…)` or `set_data`: a DataFrame or a CSV
    file with Date, Open, High, Low, Close, Volume, or the name of a generated market. They are
    split into training, validation and test; only training bars are played. What was given last
    is used until something else is.

    Each data set has its own scaler, fitted on its training bars. With other data the networks
    are moved to the new scaler, so that they stay the same function of raw features; optimisers,
    learning rates and history go on; environments begin new windows, and the best networks are
    forgotten, since their score is of other bars.

    Args:
        state_dim: features and the role value; only checked.
        action_dim: only checked.
        n_agents: only checked.
        device: `cuda` (or `gpu`) or `cpu`; None is JAX's own choice.
        lr_actor: falls linearly to 0 over the planned episodes, as lr_critic does.
        lr_critic: see lr_actor.
        gamma: discount of a bar.
        eps_clip: the setting `clip_eps`.
        k_epochs: the setting `num_epochs`.
        batch_size: the setting `num_envs`; where `num_minibatches` is not given it follows.
        seed: of everything random.
        **settings: any other of `configs/training_config.yaml`, e.g. `num_episodes`: the plan.

    Raises:
        UserError: what is given cannot be used; the message says how to mend it.
    """

    system: ClassVar[System]

    def __init__(
        self,
        state_dim: int | None = None,
        action_dim: int | None = None,
        n_agents: int | None = 3,
        device: str | None = None,
        lr_actor: float | None = None,
        lr_critic: float | None = None,
        gamma: float | None = None,
        eps_clip: float | None = None,
        k_epochs: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        cache.enable()
        named = {"lr_actor": lr_actor, "lr_critic": lr_critic, "gamma": gamma, "seed": seed}
        named |= {"eps_clip": eps_clip, "k_epochs": k_epochs, "batch_size": batch_size}
        found = settings_of(self.system, {**named, **settings})
        require_sizes(self.system, found, state_dim, action_dim, n_agents)
        self.engine = Engine(self.system, found, find_device(device))
        self._file: dict[str, Any] | None = None  # last loaded
        self._decided = 0  # draws of get_action
        self._ended = 0  # planned episodes whose end was warned of

    @property
    def settings(self) -> Settings:
        """The settings, those of a loaded checkpoint after it was loaded."""
        return self.engine.settings

    @property
    def device(self) -> jax.Device:
        """Where everything runs."""
        return self.engine.device or jax.devices()[0]

    def set_data(
        self,
        data: Data,
        *,
        date_format: str | None = None,
        tz: str | None = None,
        repair: bool = False,
        around_the_clock: bool = False,
    ) -> None:
        """Give the bars to train on, and say what they do not show by themselves.

        What is said holds wherever the same data are given again, as by `train_episode(data=df)`.

        Args:
            data: see the class.
            date_format: `day-first`, `month-first`, `year-first` or a strptime pattern.
            tz: zone of the stamps.
            repair: mend conflicting or unsorted rows instead of refusing them.
            around_the_clock: a market without the exchange's break and weekend; needs `tz`.

        Raises:
            UserError: they cannot be used.
        """
        how: dict[str, Any] = {"date_format": date_format, "tz": tz, "repair": repair}
        with self.engine.placed():
            self.engine.take(data, how=how | {"around_the_clock": around_the_clock})

    def train_episode(
        self,
        data: Data | None = None,
        start_idx: int | None = None,
        episode_length: int | None = None,
    ) -> Episode:
        """Play one window in every environment, with an update after each rollout.

        Args:
            data: see the class; None takes those of before.
            start_idx: not used: windows begin at random bars of the training split.
            episode_length: bars a window, of this episode; None takes the setting.

        Returns:
            (reward, steps): mean reward of the team in bp a window, and steps of all environments.

        Raises:
            UserError: no data, data that cannot be used, or too little memory.
            NotFiniteError: a reward, a loss or a network became NaN; the state of before is kept.
        """
        if start_idx is not None:
            warnings.warn(
                "start_idx is not used: windows begin at random bars of the training split. To "
                "train on a stretch, give it as data=df[start_idx:].",
                stacklevel=2,
            )
        with self.engine.placed():
            self.engine.take(data, episode_length)
            self._warn_at_the_end()
            with first_is_a_wish("stopping") as wished:
                (row,) = self.engine.launch(1)
        if wished():
            raise KeyboardInterrupt
        setup, _ = self.engine.trained()
        return Episode(row["terms"]["equity"], setup.episode_length * setup.config.num_envs)

    def _warn_at_the_end(self) -> None:
        """Warn once where nothing more will be learnt."""
        planned = self.engine.planned
        if self.engine.episodes >= planned and self._ended != planned:
            self._ended = planned
            warnings.warn(
                f"The {planned} planned episodes are done and the learning rates have fallen to 0: "
                "nothing more is learnt. Plan more, by num_episodes=… of the trainer or train(n).",
                stacklevel=3,
            )

    def train(self, num_episodes: int, data: Data | None = None) -> list[dict[str, Any]]:
        """Train so many more episodes; learning rates fall to 0 at their end.

        Terminals and notebooks show a progress bar. Ctrl-C ends after the running launch; what was
        learnt is kept.

        Args:
            num_episodes: more, above 0.
            data: see `train_episode`.

        Returns:
            The history: a row of metrics per episode, from the first on.

        Raises:
            UserError, NotFiniteError: see `train_episode`.
        """
        if num_episodes < 1:
            raise UserError(f"num_episodes is {num_episodes}, expected a number above 0.")
        engine = self.engine
        with engine.placed():
            engine.take(data)
            done, count = engine.episodes, 1
            engine.planned = total = done + num_episodes
            bar = Progress(done, total, lines=False)
            with first_is_a_wish("stopping") as wished, closing(bar):
                while done < total and not wished():
                    tick = time.monotonic()
                    bar.update(engine.launch(count))
                    done += count
                    count = pace.next_count(count, time.monotonic() - tick, total - done)
        if wished():
            raise KeyboardInterrupt
        return self.history

    def get_action(
        self, states: Any, agent_idx: int | None = None, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decide with the newest networks, or with those of a loaded checkpoint.

        Actions are not masked: what is illegal in an account's state is not known here (see
        `TradingEnvironment`). A central critic also sees position, drawdown and time left: the
        position follows from the role values (tactical D − (D − p), strategic D), no drawdown and
        the whole window left are assumed; with `agent_idx` the other agents' controls are those
        of a fresh account.

        Args:
            states: [A, O] or [B, A, O], per agent the raw features and its role value; with
                `agent_idx` [O] or [B, O].
            agent_idx: decide for one agent alone.
            deterministic: take the likeliest action instead of drawing one.

        Returns:
            (actions, log_probs, values), values in bp: [A] or [B, A]; with `agent_idx` [] or [B].

        Raises:
            UserError: no networks yet, or states of another shape.
        """
        with self.engine.placed():
            key = None
            if not deterministic:
                self._decided += 1
                root = jax.random.fold_in(jax.random.key(self.settings.seed), _ACTING)
                key = jax.random.fold_in(root, self._decided)
            config = static_config(self.system, self.settings)
            return act(*self.engine.networks(), config, states, agent_idx, key)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the best networks, or the newest before any validation, as a `.pth` file.

        It loads here and by `torch.load(weights_only=True)`, and holds all that is needed to use
        the networks. To go on training exactly, see `save_run`.

        Raises:
            UserError: no PyTorch, no networks, or the file cannot be written.
        """
        with self.engine.placed():
            files.save_checkpoint(self.engine, Path(path), self._file)

    def load_checkpoint(self, path: str | Path) -> None:
        """Read networks from a `.pth` file, or take up a run directory exactly; say which.

        A file gives inference and, with data, a warm start: optimisers, environments and history
        begin anew. A run directory, of `save_run` or of `gm-jax train`, gives everything: settings,
        data, state and history. What was learnt here before is forgotten.

        Raises:
            UserError: no such file or run, of another system, or damaged.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"There is no file and no run directory {path}.")
        with self.engine.placed():
            if path.is_dir():
                files.load_run(self.engine, path)
            else:
                self._file = files.load_file(self.engine, path)

    def save_progress(self, path: str | Path) -> None:
        """Write a run directory without report and export, to go on from after a cut-off.

        It takes a moment where `save_run` takes seconds to minutes; `load_checkpoint(path)` or
        `gm-jax train --resume` goes on bit for bit. What it replaces is as of `save_run`.

        Raises:
            UserError: see `save_run`.
        """
        with self.engine.placed():
            files.save_progress(self.engine, Path(path))

    @classmethod
    def unfinished_run(cls, folder: str | Path) -> Path | None:
        """Return the newest run in a folder that was cut off before its planned end; None if none.

        Runs that a trainer wrote are looked at, by `save_progress` or `save_run`; one of `gm-jax
        train` goes on there.

        Args:
            folder: that the run directories lie in; it need not exist.
        """
        return files.unfinished(cls.system, Path(folder))

    def save_run(self, path: str | Path) -> dict[str, Any]:
        """Write a whole run directory with report, plots and, with PyTorch, export package.

        `gm-jax evaluate`, `gm-jax export` and `gm-jax train --resume` take it. An earlier one of
        the same trainer is replaced, one of another trainer keeps its files under a new name.

        Returns:
            The summary of `gm-jax train --json`.

        Raises:
            UserError: nothing trained, a folder with something else in it, or not writable.
        """
        with self.engine.placed():
            return files.save_run(self.engine, Path(path))


class TacticalMAPPOTrainer(MAPPOTrainer):
    """Train `tactical`, `risk` and `execution` on 5-minute bars, see `MAPPOTrainer`."""

    system = TACTICAL


class StrategicMAPPOTrainer(MAPPOTrainer):
    """Train `strategic`, `portfolio_manager` and `regime_detector` on 30-minute bars."""

    system = STRATEGIC


def export_models(trainer: MAPPOTrainer, save_dir: str | Path) -> dict[str, Any]:
    """Write a trainer's run directory with its export package, see `MAPPOTrainer.save_run`."""
    return trainer.save_run(save_dir)
