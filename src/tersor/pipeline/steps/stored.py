"""What the tensors of a source take where they lie."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping

from tersor.core.errors import TersorError, UnsupportedError
from tersor.files.checkpoint import Checkpoint
from tersor.files.gguf import BLOCKS
from tersor.formats import get
from tersor.models.model import Model, ModelTensor

__all__ = ["source_bytes", "stored_bytes"]

_PLAIN = {label: (block, nbytes) for label, block, nbytes in BLOCKS.values()}


def source_bytes(model: Model) -> int:
    """Return the bytes of the files of a model's weights, or of its tensors where no such file is there."""
    return sum(path.stat().st_size for path in model.weights) or round(sum(stored_bytes(model)))


def stored_bytes(model: Model) -> list[float]:
    """Return the bytes of every tensor as the source stores it, without headers; computed ones are stored nowhere.

    Of a checkpoint that is known by its config.json alone, those of the format that it names. UnsupportedError where
    that tells nothing.
    """
    owners: dict[str, int] = {}  # source → weights of all tensors that are made of it
    for tensor in model.tensors:
        for source in tensor.sources:
            owners[source] = owners.get(source, 0) + math.prod(tensor.shape)
    is_coded = any(tensor.sources and tensor.source_dtype not in _PLAIN for tensor in model.tensors)
    parts = _parts(model, owners) if is_coded and model.folder and model.weights else {}
    return [_size(tensor, owners, parts) for tensor in model.tensors]


def _parts(model: Model, sources: Collection[str]) -> dict[str, int]:
    """Return the bytes of every source with its codes, scales and all else that stands in the place of a weight."""
    found: dict[str, int] = {}
    with contextlib.closing(Checkpoint(list(model.weights))) as checkpoint:
        for name, info in checkpoint.tensors.items():
            source = name if name in sources else f"{name.rpartition('.')[0]}.weight"
            found[source] = found.get(source, 0) + info.nbytes
    return found


def _size(tensor: ModelTensor, owners: Mapping[str, int], parts: Mapping[str, int]) -> float:
    weights = math.prod(tensor.shape)
    if tensor.source_dtype in _PLAIN:
        block, nbytes = _PLAIN[tensor.source_dtype]
        return weights / block * nbytes
    if parts:
        return sum(parts[source] * weights / owners[source] for source in tensor.sources)
    try:
        return tensor.rows * get(tensor.source_dtype).row_bytes(tensor.columns)
    except TersorError as error:
        raise UnsupportedError(
            f"{tensor.name} is stored as {tensor.source_dtype}, whose bytes nothing tells: name it with --format"
        ) from error
