"""Encoding and decoding of blocks: `reference` defines it in torch, native code is its twin, `codec` chooses."""
