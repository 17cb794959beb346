"""Pickles, which are programs, read as if they were data."""
