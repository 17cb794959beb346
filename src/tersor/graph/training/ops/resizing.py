"""Planes of another size: each axis by itself, by the nearest value or between two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import Ints, integers
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["resize"]


def resize(
    x: Tensor,
    _roi: Tensor | None = None,
    scales: Sequence[float] | Tensor | None = None,
    sizes: Ints | None = None,
    *,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Value with the axes scaled, or brought to the sizes; places between values as the transformation mode says."""
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    for axis, (scale, size) in zip(along, _targets([x.shape[a] for a in along], scales, sizes), strict=True):
        if size == x.shape[axis] and scale == 1:
            continue
        places = _places(x.shape[axis], size, scale, coordinate_transformation_mode, x.device)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(places, nearest_mode).clamp(0, x.shape[axis] - 1))
        else:
            x = _between(x, axis, places)
    return x


def _targets(
    before: Sequence[int], scales: Sequence[float] | Tensor | None, sizes: Ints | None
) -> list[tuple[float, int]]:
    """Return scale and new size of every axis."""
    if sizes is not None:
        return [(new / old, new) for old, new in zip(before, integers(sizes), strict=True)]
    factors: list[float] = scales.tolist() if isinstance(scales, torch.Tensor) else list(scales or ())
    return [(factor, int(old * factor)) for old, factor in zip(before, factors, strict=True)]


def _places(size: int, new: int, scale: float, mode: str, device: torch.device) -> Tensor:
    """Return where in the old axis each place of the new one lies; in float32, as engines compute it."""
    x = torch.arange(new, dtype=torch.float32, device=device)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (size - 1) / (new - 1) if new > 1 else torch.zeros_like(x)
    if mode == "pytorch_half_pixel" and new == 1:
        return torch.zeros_like(x)
    places = (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjusted = new / (scale * size)
        return size / 2 * (1 - adjusted) + places
    return places


def _nearest(places: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return places.floor().long()
    if mode == "ceil":
        return places.ceil().long()
    if mode == "round_prefer_ceil":
        return (places + 0.5).floor().long()
    return (places - 0.5).ceil().long()


def _between(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Return values on the line between the two neighbours of every place."""
    last = x.shape[axis] - 1
    places = places.clamp(0, last)
    left = places.floor().long()
    share = (places - left).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))
    right = (left + 1).clamp(max=last)
    return x.index_select(axis, left) * (1 - share) + x.index_select(axis, right) * share
