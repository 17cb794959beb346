"""The verbs of what serves, as one library call each."""
