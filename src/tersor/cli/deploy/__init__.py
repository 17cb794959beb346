"""The verbs of what serves."""
