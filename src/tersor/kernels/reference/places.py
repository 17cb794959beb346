"""The definition of what places between codes round to, and of the slopes that pass through that rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["level_of", "slopes", "values"]


def level_of(place: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Return the whole number of steps from zero that each place [groups, width] rounds to; zero [groups, 1]."""
    return place.round().clamp_(-zero, levels - 1 - zero)


def values(place: Tensor, step: Tensor, offset: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Return step · level - offset: [groups, width], all but place [groups, 1]."""
    return level_of(place, zero, levels) * step - offset


def slopes(gradient: Tensor, place: Tensor, step: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a gradient of the values makes of those of places, steps and offsets.

    It passes straight through the rounding of what is within the range, and stops where a place is beyond it.
    """
    inside = (place > -zero - 0.5) & (place < levels - 0.5 - zero)
    for_step = (gradient * level_of(place, zero, levels)).sum(-1, keepdim=True)
    return gradient * inside * step, for_step, -gradient.sum(-1, keepdim=True)
