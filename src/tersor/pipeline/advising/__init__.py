"""The advisor: walks the ladder of ways to make a model small, measures each, stops at the first that is enough."""
