"""Transforms that keep the function of a model and make its weights easier to round; they compose with any method."""
