"""One scale for many values: x ≈ scale · level, where the levels are integers or the entries of a table.

Tensors are element-major, x and w [n, …groups], a result per group is […groups]. w weighs the squared errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import divided, half, single, sum_in_order
from tersor.kernels.reference.kernel import Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Nearest", "error", "fitted", "inverse_of", "ladder", "products", "settled", "weights", "whole"]

Nearest: TypeAlias = "Callable[[Tensor], Tensor]"
"""Values divided by their scale → the nearest levels, float32; of NaN any level or NaN."""


def weights(blocks: Blocks) -> Tensor:
    """What a squared error costs, [block, blocks]: the importance, or 1 everywhere."""
    return torch.ones_like(blocks.x) if blocks.importance is None else blocks.importance


def ladder(base: float, first: float, step: float, count: int) -> tuple[float, ...]:
    """base + first + step · k for k = 0 … count - 1, every operation rounded to float32."""
    start = single(base + single(first))
    return tuple(single(start + single(single(step) * k)) for k in range(count))


def whole(low: int, high: int) -> Nearest:
    """Levels low … high, halves rounded to even."""
    return lambda places: places.round().clamp(low, high)


def inverse_of(scale: Tensor) -> Tensor:
    """1 / scale, 0 for a scale of 0."""
    return torch.where(scale != 0, divided(1, scale), torch.zeros_like(scale))


def products(x: Tensor, w: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w·level·x and Σ w·level²: their ratio is the least-squares scale for these levels."""
    wl = w * levels
    sum_lx, sum_l2 = sum_in_order(torch.stack((wl * x, wl * levels), dim=1))
    return sum_lx, sum_l2


def error(x: Tensor, w: Tensor, scale: Tensor, nearest: Nearest) -> Tensor:
    """Σ w·(scale·level - x)² with the nearest levels."""
    difference = scale * nearest(inverse_of(scale) * x) - x
    return sum_in_order(w * (difference * difference))


def fitted(
    x: Tensor, w: Tensor, nearest: Nearest, *, tries: Iterable[Tensor], refits: int, start: Tensor | None = None
) -> Tensor:
    """The least-squares scale that explains the most of Σ w·x².

    tries   inverse scales; each rounds x to levels, and the levels are given their least-squares scale
    refits  as often afterwards the inverse of the best scale so far is tried
    start   the answer if nothing explains anything, None: 0
    """
    best = torch.zeros_like(x[0]) if start is None else start
    best_gain = torch.zeros_like(x[0])
    for inverse in (*tries, *[None] * refits):
        places = (divided(1, best) if inverse is None else inverse) * x
        sum_lx, sum_l2 = products(x, w, nearest(places))
        scale = sum_lx / sum_l2
        gain = scale * sum_lx
        better = (sum_l2 > 0) & (gain > best_gain)
        best = torch.where(better, scale, best)
        best_gain = torch.where(better, gain, best_gain)
    return best


def settled(x: Tensor, w: Tensor, scale: Tensor, nearest: Nearest) -> Tensor:
    """`scale` as binary16 stores it, or the stored refit to the levels it gives, whichever errs less."""
    stored = half(scale)
    sum_lx, sum_l2 = products(x, w, nearest(inverse_of(stored) * x))
    refit = torch.where(sum_l2 > 0, half(sum_lx / sum_l2), stored)
    better = error(x, w, refit, nearest) < error(x, w, stored, nearest)
    return torch.where(better, refit, stored)
