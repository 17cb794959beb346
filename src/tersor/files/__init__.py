"""Byte-level readers that trust nothing, and the writer that never leaves half a file."""
