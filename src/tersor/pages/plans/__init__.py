"""Pages of analyses and of trade-off curves."""
