"""The run directory: lock, checkpoints and metrics. May import config, errors and distributed."""
