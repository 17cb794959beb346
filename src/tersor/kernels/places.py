"""Places between the codes of a grid: checks them, then hands them to the native kernel or to torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import ShapeError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.on_torch import on_torch
from tersor.kernels.reference import places as definition

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["slopes", "values"]


def values(place: Tensor, step: Tensor, offset: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Return what places round to, step · level - offset, float32 of their shape.

    place               [groups, width], in steps from zero
    step, offset, zero  [groups, 1]; zero is a whole number, and levels are -zero … levels - 1 - zero
    """
    module = on_torch() if _is_known(place, step, offset, zero) else None
    if module is None:
        return definition.values(place, step, offset, zero, levels)
    place, step, offset, zero = (array.contiguous() for array in (place, step, offset, zero))
    made = torch.empty_like(place)
    given = (array.data_ptr() for array in (place, step, offset, zero))
    module.place_values(*place.shape, *given, levels - 1, made.data_ptr(), torch.get_num_threads())
    return made


def slopes(gradient: Tensor, place: Tensor, step: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a gradient [groups, width] of the values makes of those of places, steps and offsets."""
    if gradient.shape != place.shape:
        raise ShapeError(f"places {tuple(place.shape)} need a gradient as large, got {tuple(gradient.shape)}")
    module = on_torch() if _is_known(place, step, zero, gradient=gradient) else None
    if module is None:
        return definition.slopes(gradient, place, step, zero, levels)
    gradient, place, step, zero = (array.contiguous() for array in (gradient, place, step, zero))
    made = torch.empty_like(place), torch.empty_like(step), torch.empty_like(step)
    given = (array.data_ptr() for array in (gradient, place, step, zero))
    results = (array.data_ptr() for array in made)
    module.place_slopes(*place.shape, *given, levels - 1, *results, torch.get_num_threads())
    return made


def _is_known(place: Tensor, *sides: Tensor, gradient: Tensor | None = None) -> bool:
    """Whether the kernel, which is given addresses alone, can take these; ShapeError where shapes do not fit."""
    if place.dim() != 2 or any(side.shape != (len(place), 1) for side in sides):
        shapes = ", ".join(str(tuple(side.shape)) for side in sides)
        raise ShapeError(f"places [groups, width] need steps and zeros [groups, 1], got {tuple(place.shape)}, {shapes}")
    arrays = [place, *sides, *([] if gradient is None else [gradient])]
    return place.shape[1] > 0 and all(a.device.type == "cpu" and a.dtype == torch.float32 for a in arrays)
