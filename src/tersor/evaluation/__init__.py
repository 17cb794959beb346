"""EVALUATE: how good, how fast and how far from its source an artefact is."""
