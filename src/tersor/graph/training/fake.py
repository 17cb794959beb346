"""Fake quantization: floats on the grid of an engine's integers, and a gradient for what was rounded and for its step.

Source: Esser et al. 2020, "Learned Step Size Quantization", arXiv:1902.08153, equations 1 to 3 and section 2.2.
Differs: the step is base · exp(shift), where base is what calibration found and shift is trained from zero. It starts
as exactly that step, cannot become negative, and one learning rate fits steps of any size, also with Adam. Integer zero
points stay what calibration found: 0 is met exactly, as engines need it for padding, and the codes that are trained on
are the codes that are written; the step moves both ends of the range.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "Grid",
    "codes_of",
    "fake_quantize",
    "fake_quantize_at_run_time",
    "fake_quantize_bias",
    "fake_quantize_weight",
    "off_grid",
    "step_of",
]

Grid: TypeAlias = tuple[int, int, int]
"""Zero point, lowest and highest code."""
LARGEST_BIAS = (1 << 31) - 1
BYTE = 255


def step_of(base: Tensor, shift: Tensor) -> Tensor:
    """Return the step, float32 [] or [channels]."""
    return base * torch.exp(shift)


def fake_quantize(x: Tensor, base: Tensor, shift: Tensor, grid: Grid) -> Tensor:
    """Return an activation as DequantizeLinear(QuantizeLinear(x)) has it, with one step for all."""
    return _rounded(x, step_of(base, shift), grid, x.numel() / max(len(x) if x.ndim else 1, 1))


def fake_quantize_at_run_time(x: Tensor) -> Tensor:
    """Return an activation as DynamicQuantizeLinear has it: 8 bits over the range that it has itself."""
    values = x.detach()
    if not values.numel():
        return x
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    step = (high - low) / BYTE
    if not bool(step > 0):
        return x
    zero = torch.clamp(torch.round(-low / step), 0, BYTE)
    codes = torch.clamp(torch.round(values / step) + zero, 0, BYTE)
    made: Tensor = _straight().apply(x, (codes - zero) * step)
    return made


def fake_quantize_weight(  # noqa: PLR0917 (calls in a graph have no keywords)
    x: Tensor, base: Tensor, shift: Tensor, grid: Grid, axis: int | None, block: int | None = None
) -> Tensor:
    """Return a weight on its grid: a step for each place of the axis, for each block of its row, or one for all."""
    step = step_of(base, shift)
    return _rounded(x, _beside(step, x, axis, block), grid, x.numel() / max(step.numel(), 1))


def fake_quantize_bias(bias: Tensor, base: Tensor, shift: Tensor, weight_base: Tensor, weight_shift: Tensor) -> Tensor:
    """Return a bias as int32 on the step of the sums it is added to: that of the input times those of the weight."""
    step = (step_of(base, shift) * step_of(weight_base, weight_shift)).detach()
    codes = torch.round(bias.detach().double() / step.double())
    if not bool((codes.abs() <= LARGEST_BIAS).all()):  # as where the step is zero: engines get it in float
        return bias
    made: Tensor = _straight().apply(bias, codes.to(torch.float32) * step)
    return made


def off_grid(  # noqa: PLR0917 (takes what `fake_quantize_weight` takes)
    x: Tensor, base: Tensor, shift: Tensor, grid: Grid, axis: int | None, block: int | None = None
) -> Tensor:
    """Return how far each value within the range is from the one that it is rounded to; a gradient for it alone."""
    step = _beside(step_of(base, shift), x, axis, block).detach()
    zero_point, low, high = grid
    values = torch.clamp(x, (low - zero_point) * step, (high - zero_point) * step)
    return values - (_codes(values.detach(), step, grid) - zero_point) * step


def codes_of(x: Tensor, step: Tensor, grid: Grid, axis: int | None = None, block: int | None = None) -> Tensor:
    """Return the integers that a value is rounded to, int32."""
    return _codes(x, _beside(step, x, axis, block), grid).to(torch.int32)


def _codes(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    zero_point, low, high = grid
    return torch.clamp(torch.round(x / step) + zero_point, low, high)


def _beside(step: Tensor, x: Tensor, axis: int | None, block: int | None = None) -> Tensor:
    if axis is not None and block is not None:
        return step.repeat_interleave(block, 1 - axis)
    return step if axis is None else step.reshape([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)])


def _rounded(x: Tensor, step: Tensor, grid: Grid, count: float) -> Tensor:
    """Round; `count` is how many values of one item share a step."""
    zero_point, low, high = grid
    share = 1 / math.sqrt(max(count, 1) * max(high - zero_point, zero_point - low))
    made: Tensor = _rounding().apply(x, step, grid, share)
    return made


@functools.cache
def _rounding() -> Any:
    """Return the autograd function; torch is loaded by now."""

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, step: Tensor, grid: Grid, share: float) -> Tensor:
            ctx.save_for_backward(x, step)
            ctx.grid, ctx.share = grid, share
            return (_codes(x, step, grid) - grid[0]) * step

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            x, step = ctx.saved_tensors
            zero_point, low, high = ctx.grid
            below, above = low - zero_point, high - zero_point
            steps = x / step
            inside = (steps > below) & (steps < above)
            slope = torch.where(inside, torch.round(steps) - steps, steps.clamp(below, above))
            for_step = (gradient * slope).sum_to_size(step.shape) * ctx.share
            return gradient * inside, for_step, None, None

    return Rounding


@functools.cache
def _straight() -> Any:
    """Return the autograd function whose value is its second argument and whose gradient is for its first."""

    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, _x: Tensor, rounded: Tensor) -> Tensor:
            return rounded.view_as(rounded)

        @staticmethod
        def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return gradient, None

    return Straight
