"""Verbs that choose: which plan, which format, which machine."""
