"""From one checkpoint container to another: the same codes under the same scales, or a refusal."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tersor.containers.hf.writer import SHARD_BYTES, write_checkpoint
from tersor.core.card import Artefact
from tersor.core.errors import MissingError, SchemeError
from tersor.files.checkpoint import Checkpoint, read_json, weight_files
from tersor.formats.hf.settings import read_settings
from tersor.models.quantized_checkpoint import QuantizedCheckpoint

__all__ = ["convert_checkpoint", "open_quantized"]


def open_quantized(folder: Path) -> QuantizedCheckpoint:
    """Return the quantized checkpoint in `folder`; the caller closes it.

    Raises MissingError where there is none, SchemeError where it is not quantized, and what reading it raises.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"{folder}: no config.json; a checkpoint folder holds it beside the weights")
    values = read_json(path).get("quantization_config")
    if not values:
        raise SchemeError(f"{path}: has no quantization_config, so the checkpoint is not quantized")
    settings = read_settings(values, str(path))
    paths, index, _ = weight_files(folder)
    checkpoint = Checkpoint(paths, index)
    try:
        return QuantizedCheckpoint(checkpoint, settings, str(folder))
    except BaseException:
        checkpoint.close()
        raise


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
