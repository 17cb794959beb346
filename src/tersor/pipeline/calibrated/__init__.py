"""Quantizing with knowledge of the data: calibration, a method, and proof that it was worth it."""
