"""Run the command line: `python -m gm_jax`."""

from gm_jax.cli import console


if __name__ == "__main__":
    console()
