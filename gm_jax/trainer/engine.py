"""A training under way without a directory: data, state, history, and launches of the program."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import uuid4

import jax
import jax.numpy as jnp

from gm_jax.config import change
from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.scaling import Scaler, rescaled
from gm_jax.mappo.types import Hyper, Networks, TrainState
from gm_jax.run import memory
from gm_jax.run.metrics import metric_rows, require_finite
from gm_jax.run.progress import say
from gm_jax.run.setup import Setup
from gm_jax.settings import Settings
from gm_jax.systems import System
from gm_jax.trainer.data import Data, Dataset, Shelf, begun, moved


class Engine:
    """Trains a team, an episode being one window in every environment.

    Args:
        system: whose team.
        settings: of the training.
        device: where everything runs; None is JAX's own choice.
    """

    def __init__(
        self, system: System, settings: Settings, device: jax.Device | None = None
    ) -> None:
        self.system, self.settings, self.device = system, settings, device
        self.identity = uuid4().hex  # in what is exported, to know it again
        self.shelf = Shelf(system)
        self.dataset: Dataset | None = None
        self.waiting: tuple[Networks, Scaler] | None = None  # networks that wait for data
        self._said: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        """Forget what was learnt."""
        self.setup: Setup | None = None
        self.state: TrainState | None = None
        self.history: list[dict[str, Any]] = []  # a row of metrics per episode
        self._compiled = False  # the program, for the shapes of the setup
        self.planned = self.settings.num_episodes  # learning rates have then fallen to 0
        self.compile_seconds = self.train_seconds = 0.0
        self.trained_steps = 0  # since it was begun or taken up

    def placed(self) -> AbstractContextManager[Any]:
        """Return the context in which everything runs on the device; callers open it."""
        return nullcontext() if self.device is None else jax.default_device(self.device)

    @property
    def episodes(self) -> int:
        """Episodes done."""
        return 0 if self.state is None else int(self.state.iteration)

    def trained(self) -> tuple[Setup, TrainState]:
        """Return setup and state.

        Raises:
            UserError: there is none yet.
        """
        if self.setup is None or self.state is None:
            raise UserError("Nothing was trained yet: give data, e.g. train_episode(data=df).")
        return self.setup, self.state

    def networks(self) -> tuple[Networks, Scaler]:
        """Return the newest networks, and the scaler of their features.

        Raises:
            UserError: there are none yet.
        """
        if self.waiting is not None:
            return self.waiting
        if self.state is None or self.setup is None:
            raise UserError(
                "There are no networks yet: train_episode(data=…) or load_checkpoint(path) first."
            )
        return self.state.networks, self.setup.scaler

    def take(
        self,
        data: Data | None = None,
        episode_length: int | None = None,
        how: Mapping[str, Any] | None = None,
    ) -> None:
        """Make data and windows those that are trained on.

        Args:
            data: bars; None keeps those of before.
            episode_length: bars a window; None takes the setting.
            how: see `Shelf.dataset`.

        Raises:
            UserError: no data, or data that cannot be used.
        """
        dataset = self.dataset
        if data is not None:
            dataset = self.shelf.dataset(data, self.settings, how)
        if dataset is None:
            raise UserError(
                "No data to train on. Give bars, e.g. train_episode(data=df) with the columns "
                "Date, Open, High, Low, Close, Volume; or data='planted', a generated market."
            )
        settings = self.settings
        if episode_length is not None:
            settings = change(settings, {"episode_length": episode_length}, "train_episode")
        setup = self.shelf.setup(dataset.loaded, settings)
        if setup is not self.setup:
            self._turn_to(setup)
        self.dataset = dataset

    def _turn_to(self, setup: Setup) -> None:
        """Begin, or go on with other bars or windows."""
        for warning in setup.warnings:
            if warning not in self._said:
                say(f"warning: {warning}")
        self._said |= set(setup.warnings)
        if self.state is None or self.setup is None:
            nets = rescaled(*self.waiting, setup.scaler) if self.waiting else None
            state, self.waiting = begun(setup, nets), None
        else:
            state = moved(self.state, self.setup, setup)
        self.setup, self.state, self._compiled = setup, state, False

    def _compile(self) -> None:
        """Compile the program where none has been for these shapes, by running nothing."""
        setup, state = self.trained()
        tick = time.monotonic()
        self._run(setup, jax.tree.map(jnp.copy, state), 0)  # what it is given is gone if it fails
        self.compile_seconds += time.monotonic() - tick
        self._compiled = True

    def launch(self, count: int) -> list[dict[str, Any]]:
        """Train so many episodes in one launch of the program; return their rows of metrics.

        Raises:
            NotFiniteError: a reward, a loss or a network became NaN; the state of before is kept.
            UserError: the device has too little memory; the same.
        """
        if not self._compiled:
            self._compile()
        (setup, state), done = self.trained(), self.episodes
        self.state = jax.tree.map(jnp.copy, state)  # what is left if this fails
        tick = time.monotonic()
        after, metrics = self._run(setup, state, count)
        seconds = time.monotonic() - tick
        rows = metric_rows(setup, metrics, done, count, seconds)
        steps = setup.episode_length * setup.config.num_envs
        before = self.history[-1]["env_steps"] if self.history else 0
        for number, row in enumerate(rows, 1):
            row["env_steps"] = before + number * steps  # windows may have had other lengths
        require_finite(rows, f"of iteration {done}, is the one that the trainer goes on from")
        self.state = after
        self.history += rows
        self.train_seconds += seconds
        self.trained_steps += count * steps
        return rows

    def _run(self, setup: Setup, state: TrainState, count: int) -> tuple[TrainState, Any]:
        """Return the state and the metrics, on the host, after so many iterations."""
        rest = (setup.market, setup.params, self._hyper(setup, state), setup.segments)
        try:
            state, metrics = learner.train(state, jnp.int32(count), *rest, config=setup.config)
            return state, jax.device_get(metrics)
        except jax.errors.JaxRuntimeError as error:
            if not memory.ran_out(error):
                raise
            raise UserError(
                f"The device has too little memory for {setup.config.num_envs} environments. Take "
                "fewer, by batch_size=…; gpu_optimizer.optimize_batch_size(trainer) finds the most "
                "that fit. What was learnt is kept."
            ) from error

    def _hyper(self, setup: Setup, state: TrainState) -> Hyper:
        """Return the program's numbers, with the updates done and to come as those planned."""
        left = (self.planned - int(state.iteration)) * setup.config.num_rollouts
        return setup.hyper.replace(num_updates=jnp.float32(max(int(state.update) + left, 1)))

    def begin(self, settings: Settings, networks: tuple[Networks, Scaler]) -> None:
        """Begin anew, with networks that learnt before.

        Args:
            settings: of the training to come.
            networks: and the scaler of their features.
        """
        self.settings, self.waiting = settings, networks
        self._clear()
        if self.dataset is not None:
            self.take()

    def take_up(
        self, setup: Setup, dataset: Dataset, state: TrainState, history: list[dict[str, Any]]
    ) -> None:
        """Go on exactly where a run was left.

        Args:
            setup: of the run.
            dataset: its bars.
            state: of the training.
            history: a row of metrics per episode.
        """
        self.settings, self.waiting = setup.settings, None
        self._clear()
        self.dataset, self.history = dataset, history
        self.setup, self.state = self.shelf.keep(setup), state
