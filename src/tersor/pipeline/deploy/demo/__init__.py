"""DEMO: a whole rollout on the embedded model, with a real gateway and real traffic."""
