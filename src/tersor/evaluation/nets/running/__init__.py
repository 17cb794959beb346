"""Nets in every engine that runs them, each in a process of its own, timed there."""
