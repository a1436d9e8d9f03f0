"""One module per channel type: how its messages arrive, and nothing else."""
