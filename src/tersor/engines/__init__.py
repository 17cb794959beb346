"""Real engines, each in a child process: they may crash, the caller may not."""
