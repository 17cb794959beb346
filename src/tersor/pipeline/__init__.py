"""The verbs of tersor, one library call each."""
