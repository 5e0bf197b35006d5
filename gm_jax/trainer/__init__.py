"""Trainers for notebooks and scripts: a thin face of the compiled program."""

from gm_jax.trainer.trainer import (
    MAPPOTrainer,
    StrategicMAPPOTrainer,
    TacticalMAPPOTrainer,
    export_models,
)


__all__ = ["MAPPOTrainer", "StrategicMAPPOTrainer", "TacticalMAPPOTrainer", "export_models"]
