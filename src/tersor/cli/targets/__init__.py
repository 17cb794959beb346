"""Verbs about machines: what fits where, what runs fastest."""
