"""Nets in PyTorch, or anything that can be called: accuracy, agreement and the error of every layer."""
