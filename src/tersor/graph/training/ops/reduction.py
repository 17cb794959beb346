"""Sums, means, extremes and norms along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tersor.graph.training.ops.arguments import Ints, integers
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "argmax", "argmin", "cumulative_sum", "reduce_l1", "reduce_l2", "reduce_log_sum_exp", "reduce_max", "reduce_mean",
    "reduce_min", "reduce_product", "reduce_sum", "reduce_sum_square",
]  # fmt: skip


def _reduce(
    x: Tensor, axes: Ints | None, keepdims: int, noop: int, run: Callable[[Tensor, list[int], bool], Tensor]
) -> Tensor:
    """Apply `run` along the axes: all of them where none are given, unless that means none (`noop`)."""
    chosen = [] if axes is None else [axis % x.ndim for axis in integers(axes)]
    if not chosen and noop:
        return x
    return run(x, chosen or list(range(x.ndim)), bool(keepdims))


def reduce_mean(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Mean along the axes."""
    return _reduce(x, axes, keepdims, noop_with_empty_axes, lambda x, axes, keep: x.mean(axes, keepdim=keep))


def reduce_sum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Sum along the axes, in the type of the input."""
    return _reduce(
        x, axes, keepdims, noop_with_empty_axes, lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)
    )


def reduce_max(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Largest value along the axes."""
    return _reduce(x, axes, keepdims, noop_with_empty_axes, lambda x, axes, keep: x.amax(axes, keepdim=keep))


def reduce_min(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Smallest value along the axes."""
    return _reduce(x, axes, keepdims, noop_with_empty_axes, lambda x, axes, keep: x.amin(axes, keepdim=keep))


def reduce_l1(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Sum of sizes along the axes."""
    return reduce_sum(x.abs(), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_l2(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Euclidean length along the axes; its gradient at zero is zero."""
    if axes is None and noop_with_empty_axes:
        return x.abs()
    return _reduce(x, axes, keepdims, 0, lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep))


def reduce_sum_square(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of squares along the axes."""
    return reduce_sum(x.square(), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_log_sum_exp(
    x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum of exponentials along the axes."""
    return _reduce(x, axes, keepdims, noop_with_empty_axes, torch.logsumexp)


def reduce_product(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """Product along the axes, in the type of the input."""

    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        for axis in sorted(axes, reverse=True):
            x = x.prod(axis, keepdim=keep, dtype=x.dtype)
        return x

    return _reduce(x, axes, keepdims, noop_with_empty_axes, run)


def argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Place of the largest value along the axis; the first of equal ones, or the last."""
    if not select_last_index:
        return torch.argmax(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))


def argmin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Place of the smallest value along the axis; the first of equal ones, or the last."""
    return argmax(-x, axis=axis, keepdims=keepdims, select_last_index=select_last_index)


def cumulative_sum(x: Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of all values up to each along the axis."""
    (along,) = integers(axis)
    x = x.flip(along) if reverse else x
    made = x.cumsum(along, dtype=x.dtype)
    if exclusive:
        made = torch.cat((torch.zeros_like(x.narrow(along, 0, 1)), made.narrow(along, 0, x.shape[along] - 1)), along)
    return made.flip(along) if reverse else made
