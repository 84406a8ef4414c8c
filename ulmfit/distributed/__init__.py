"""Process group, stop requests, watchdog, and the engines that shard. May import config and errors."""
