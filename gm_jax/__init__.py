"""Teams of trading agents trained by MAPPO in one compiled JAX program."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import gm_jax.gpu_optimizer as gpu_optimizer
    from gm_jax.deploy.trading_env import TradingEnvironment
    from gm_jax.trainer import (
        MAPPOTrainer,
        StrategicMAPPOTrainer,
        TacticalMAPPOTrainer,
        export_models,
    )

__all__ = [
    "MAPPOTrainer",
    "StrategicMAPPOTrainer",
    "TacticalMAPPOTrainer",
    "TradingEnvironment",
    "__version__",
    "export_models",
    "gpu_optimizer",
]
__version__ = version("gm-jax")


def __getattr__(name: str) -> Any:
    """Import on first use: `import gm_jax` takes neither JAX's seconds nor PyTorch's."""
    if name == "TradingEnvironment":
        from gm_jax.export.bundle import deployed

        try:
            return deployed().TradingEnvironment
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            need = "TradingEnvironment runs PyTorch networks, and PyTorch is not installed: "
            raise ModuleNotFoundError(need + "pip install torch", name=error.name) from error
    if name == "gpu_optimizer":
        return import_module("gm_jax.gpu_optimizer")
    if name in __all__:
        return getattr(import_module("gm_jax.trainer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
