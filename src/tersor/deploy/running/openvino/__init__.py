"""Nets that OpenVINO runs, inside an engine's process."""
