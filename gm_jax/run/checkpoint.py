"""Checkpoints: the whole training state, written atomically by Orbax."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from gm_jax.errors import UserError
from gm_jax.mappo import learner
from gm_jax.mappo.types import TrainState
from gm_jax.run.setup import Setup


KEPT = 2  # the newest and the one before it


class Checkpoints:
    """The folder `checkpoints/` of a run, one step per iteration."""

    def __init__(self, directory: Path, create: bool = False) -> None:
        if not create and not directory.is_dir():
            raise UserError(f"The checkpoints of the run are gone: no folder {directory}.")
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, create=create, enable_async_checkpointing=False
            ),
        )

    def save(self, state: TrainState) -> None:
        """Write the state; a half-written checkpoint is never taken for a whole one."""
        iteration = int(state.iteration)
        if iteration not in self._manager.all_steps():
            self._manager.save(iteration, args=ocp.args.StandardSave(state))

    def restore(self, setup: Setup) -> TrainState:
        """Return the newest state of a run of this setup.

        Raises:
            UserError: there is none, or it was written with other settings.
        """
        step = self._manager.latest_step()
        if step is None:
            raise UserError(
                f"No whole checkpoint in {self._manager.directory}; start the run again with "
                "`gm-jax train`."
            )
        init = partial(learner.init_state, config=setup.config)
        shapes = jax.eval_shape(init, jax.random.key(0), setup.market, setup.params)
        # onto this machine's device, whichever the state was saved from
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes
        )
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(template))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The checkpoint {step} in {self._manager.directory} does not fit the settings "
                f"of its run ({str(error).splitlines()[0]}); was it written by another version?"
            ) from error

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()
