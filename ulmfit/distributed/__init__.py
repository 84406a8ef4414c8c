"""Processes, and engines that shard. May import config and errors; zero and fsdp also import training.optim."""
