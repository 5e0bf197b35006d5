"""Training runs: from a source of bars to a run directory and back."""
