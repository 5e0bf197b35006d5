"""What an exported model carries: it runs without gm_jax."""
