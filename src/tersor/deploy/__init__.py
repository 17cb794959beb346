"""DEPLOY: what serves when, whether it may, what runs it, and what happens when it fails."""
