"""Quantized matrices multiplied by torch's own operators, on any device that torch has."""
