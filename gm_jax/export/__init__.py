"""From a run to networks that other programs load."""
