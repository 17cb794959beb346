"""Rollouts of candidates."""
