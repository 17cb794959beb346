"""Engines that serve: each in a process of its own, many requests at once, started again when it dies."""
