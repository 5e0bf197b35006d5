"""Teams of trading agents trained by MAPPO in one compiled JAX program."""

from importlib.metadata import version


__version__ = version("gm-jax")
