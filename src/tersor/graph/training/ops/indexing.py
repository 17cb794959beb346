"""Values picked by index, masks, and values made from numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import Ints, Number, integers, torch_type
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["constant_of_shape", "gather", "gather_elements", "gather_nd", "range_", "trilu"]


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Slices along the axis, in the shape of the indices; negative ones count from the end."""
    axis %= x.ndim
    places = _from_start(indices, x.shape[axis])
    made = x.index_select(axis, places.reshape(-1))
    return made.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Values along the axis, one for every index; negative ones count from the end."""
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices at places that the last axis of the indices spells out, within each item of the first axes."""
    batch, inner = x.shape[:batch_dims], x.shape[batch_dims:]
    rest, depth = indices.shape[batch_dims:-1], indices.shape[-1]
    items = x.reshape(-1, *inner)
    places = indices.reshape(len(items), -1, depth).unbind(-1)
    number = torch.arange(len(items), device=x.device)[:, None]
    picked = items[(number, *(_from_start(place, inner[axis]) for axis, place in enumerate(places)))]
    return picked.reshape(*batch, *rest, *inner[depth:])


def _from_start(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def trilu(x: Tensor, k: Ints = 0, *, upper: int = 1) -> Tensor:
    """Upper or lower triangle, from the `k`-th diagonal on; the rest is zero."""
    (diagonal,) = integers(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def constant_of_shape(shape: Ints, *, value: tuple[float, int] = (0.0, 1)) -> Tensor:
    """One number, with its ONNX type, all over the shape."""
    device = shape.device if isinstance(shape, torch.Tensor) else None
    return torch.full(integers(shape), value[0], dtype=torch_type(value[1]), device=device)


def range_(start: Number, limit: Number, delta: Number) -> Tensor:
    """Numbers from `start` to before `limit`."""
    first = torch.as_tensor(start)
    numbers = [bound.item() if isinstance(bound, torch.Tensor) else bound for bound in (start, limit, delta)]
    return torch.arange(*numbers, dtype=first.dtype, device=first.device)
