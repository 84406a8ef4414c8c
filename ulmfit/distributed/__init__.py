"""Processes, and engines that shard. May import config and errors."""
