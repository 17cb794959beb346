"""Comparisons with full precision behind the answers."""
