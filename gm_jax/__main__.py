"""Run the command line: `python -m gm_jax`."""

from gm_jax.cli import main


if __name__ == "__main__":
    raise SystemExit(main())
