"""Speed of the program on this machine, beside its ceiling and beside PyTorch."""
