"""Nets that torch.export saved, inside an engine's process."""
