"""From one checkpoint container to another: the same codes under the same scales, or a refusal."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tersor.containers.hf.writer import SHARD_BYTES, write_checkpoint
from tersor.core.card import Artefact
from tersor.models.quantized_checkpoint import open_quantized

__all__ = ["convert_checkpoint"]


def convert_checkpoint(
    folder: Path, output: Path, name: str, *, activations: bool = False, shard_bytes: int = SHARD_BYTES
) -> tuple[Artefact, ...]:
    """Write the quantized checkpoint in `folder` as container `name`; options and errors as in `write_checkpoint`."""
    with contextlib.closing(open_quantized(folder)) as source:
        formats = {tensor: source.format(tensor) for tensor in source.quantized_names}
        tensors = ((tensor, source.quantized(tensor)) for tensor in formats)
        return write_checkpoint(
            folder, source, formats, tensors, output, name=name, activations=activations, shard_bytes=shard_bytes
        )
