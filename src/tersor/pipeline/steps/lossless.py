"""A checkpoint as a GGUF that loses nothing: the reference that llama.cpp can run."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tersor.containers.mixtures import is_quantizable
from tersor.models.model import Model, ModelTensor
from tersor.models.transforms import Affine
from tersor.pipeline.quantize import quantize

__all__ = ["lossless_gguf"]

MEMORY_SHARE = 0.4
"""Share of this machine's memory that float32 weights may take; beyond it every matrix keeps its own 16 bits."""
_HALVES = {"BF16": "bf16", "F16": "f16"}


def lossless_gguf(model: Model, folder: Path) -> Path:
    """Return a GGUF that holds exactly the weights of `model`: its own file where it is one, else one made in `folder`.

    Matrices are written as float32 even where the checkpoint has 16 bits: llama.cpp rounds the *activations* to 16
    bits before it multiplies them with 16-bit weights, and a reference should not round. Only where float32 would fill
    MEMORY_SHARE of the machine or the disk do they keep their type, which loses nothing of the weights either.

    `folder` must be there; the file in it is the caller's to delete. Raises what reading and `quantize` raise.
    """
    own = next((path for path in model.files if path.suffix == ".gguf"), None)
    if own is not None:
        return own
    path = folder / "reference.gguf"
    kept = () if _has_room(model, folder) else tuple(_own_types(model))
    quantize(model, "f32", path, tensor_formats=kept, measure=False)
    return path


def _has_room(model: Model, folder: Path) -> bool:
    needed = 4 * sum(tensor.rows * tensor.columns for tensor in model.tensors)
    if needed > 0.9 * shutil.disk_usage(folder).free:
        return False
    try:
        return needed <= MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return True  # this system does not tell


def _own_types(model: Model) -> list[str]:
    """PATTERN=FORMAT for each matrix that 16 bits hold exactly: stored so, and copied without arithmetic."""
    return [
        f"^{re.escape(tensor.name)}$={_HALVES[tensor.source_dtype]}"
        for tensor in model.tensors
        if is_quantizable(tensor) and tensor.source_dtype in _HALVES and not _is_computed(tensor)
    ]


def _is_computed(tensor: ModelTensor) -> bool:
    return isinstance(tensor.values, Affine)
