"""Which tensors a model must have, checked before any is read, and reading them as torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import FormatError, ShapeError, UnsupportedError
from tersor.decoder.settings import Settings
from tersor.kernels.lazy import LazyModule
from tersor.models.model import Model, ModelTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["FACTORS", "checked_tensors", "read"]

FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Stems of the tensors that divide rope frequencies."""


def checked_tensors(model: Model, settings: Settings) -> dict[str, ModelTensor]:
    """Return the tensors by name.

    Raises UnsupportedError for one that the architecture has no place for, ShapeError for one whose shape is not what
    the metadata implies, FormatError for one that is missing or there twice.
    """
    shapes, required = _expected(settings)
    found: dict[str, ModelTensor] = {}
    for tensor in model.tensors:
        wanted = shapes.get(tensor.name)
        if wanted is None:
            raise UnsupportedError(
                f"{model.name}: {tensor.name} {tensor.shape} has no place in {settings.row.name} with "
                f"{settings.layers} blocks"
            )
        if tensor.shape != wanted:
            raise ShapeError(f"{model.name}: {tensor.name} is {tensor.shape}; the metadata makes it {wanted}")
        if tensor.name in found:
            raise FormatError(f"{model.name}: {tensor.name} is there twice")
        found[tensor.name] = tensor
    missing = [name for name in required if name not in found]
    if missing:
        raise FormatError(f"{model.name}: {len(missing)} tensors are missing, the first is {missing[0]}")
    return found


def read(tensor: ModelTensor, device: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Return a tensor as float32 on `device`; rows `start` to `stop` of it as a matrix where they are given."""
    values = torch.from_numpy(tensor.read(start, tensor.rows if stop is None else stop))
    return (values.reshape(tensor.shape) if stop is None else values).to(device)


def _expected(settings: Settings) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return name → shape of every tensor that may be there, and the names of those that must."""
    shapes: dict[str, tuple[int, ...]] = {f"{stem}.weight": (settings.rope.dimensions // 2,) for stem in FACTORS}
    shapes["output.weight"] = (settings.axes["vocabulary"], settings.axes["hidden"])
    required: dict[str, None] = {}
    for rule in settings.row.rules:
        shape = tuple(settings.axes[axis] for axis in rule.shape)
        for layer in range(settings.layers if "{i}" in rule.name else 1):
            name = rule.name.format(i=layer)
            shapes[name] = shape
            if rule.required and name != "output.weight":
                required[name] = None
    return shapes, list(required)
