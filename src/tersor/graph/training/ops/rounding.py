"""QuantizeLinear and DequantizeLinear, by the standard: round half to even, add the zero point, saturate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import torch_type
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["dequantize", "quantize"]


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    element: tuple[int, int, int],
) -> Tensor:
    """Integers nearest to x / scale, in the range of the element type; no gradient goes through."""
    low, high, number = element
    steps = torch.round(x / _along(scale, x, axis, block_size))
    if zero_point is not None:
        steps = steps + _along(zero_point, x, axis, block_size)
    return steps.clamp(low, high).to(torch_type(number))


def dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
) -> Tensor:
    """Values that the integers stand for, in the type of the scale."""
    steps = x.to(torch.int32)
    if zero_point is not None:
        steps = steps - _along(zero_point, x, axis, block_size).to(torch.int32)
    return steps.to(scale.dtype) * _along(scale, x, axis, block_size)


def _along(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Return scales or zero points so that they broadcast: one, one a place of the axis, or one a block of it."""
    if values.numel() == 1 and not block:
        return values.reshape(())
    axis %= x.ndim
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values.reshape(-1, *[1] * (x.ndim - 1 - axis))
