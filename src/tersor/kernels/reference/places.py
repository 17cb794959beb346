"""The definition of what places between codes round to, and of the slopes that pass through that rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["is_inside", "level_of", "passed", "slopes", "values"]


def level_of(place: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Return the whole number of steps from zero that each place [groups, width] rounds to; zero [groups, 1]."""
    return place.round().clamp_(-zero, levels - 1 - zero)


def is_inside(place: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Return whether each place is within the range, half a step beyond its outermost levels included."""
    return (place > -zero - 0.5) & (place < levels - 0.5 - zero)


def values(place: Tensor, step: Tensor, offset: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Return step · level - offset: [groups, width], all but place [groups, 1]."""
    return level_of(place, zero, levels) * step - offset


def slopes(gradient: Tensor, place: Tensor, step: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a gradient of the values makes of those of places, steps and offsets."""
    return passed(gradient, level_of(place, zero, levels), is_inside(place, zero, levels), step)


def passed(gradient: Tensor, level: Tensor, inside: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same, given what places round to, evenly spaced or not.

    It passes straight through the rounding of what is within the range, and stops where a place is beyond it.
    """
    for_step = (gradient * level).sum(-1, keepdim=True)
    return gradient * inside * step, for_step, -gradient.sum(-1, keepdim=True)
