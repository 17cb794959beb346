"""Largest and mean value of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tersor.graph.training.ops.arguments import interleaved, window_over
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = ["average_pool", "global_average_pool", "global_max_pool", "max_pool"]


def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Largest value of every window; padding is never the largest."""
    spatial = len(kernel_shape)
    strides, dilations, reach, begin, end = window_over(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, auto_pad=auto_pad, pads=pads
    )
    beyond = _beyond(x.shape[2:], begin, end, reach, strides) if ceil_mode else [0] * spatial
    end = [e + more for e, more in zip(end, beyond, strict=True)]
    if begin != end or any(2 * b > k for b, k in zip(begin, kernel_shape, strict=True)):
        x = functional.pad(x, interleaved(begin, end), value=-math.inf)
        begin = [0] * spatial
    run: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[spatial - 1]
    made: Tensor = run(x, list(kernel_shape), strides, begin, dilations)
    return made


def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Mean of every window, over its places inside the input, or inside the input and its padding."""
    spatial = len(kernel_shape)
    strides, dilations, reach, begin, end = window_over(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, auto_pad=auto_pad, pads=pads
    )
    beyond = _beyond(x.shape[2:], begin, end, reach, strides) if ceil_mode else [0] * spatial
    padding = interleaved(begin, end)
    around = functional.pad(x, padding) if any(padding) else x  # a padding of nothing is an operator all the same
    around = functional.pad(around, interleaved([0] * spatial, beyond)) if any(beyond) else around
    means = _means(around, kernel_shape, strides, dilations)
    if not any(beyond) and (count_include_pad or not any(padding)):
        return means
    counted = functional.pad(torch.ones_like(x[:1, :1]), padding, value=float(bool(count_include_pad)))
    return means / _means(functional.pad(counted, interleaved([0] * spatial, beyond)), kernel_shape, strides, dilations)


def _beyond(
    size: Sequence[int], begin: Sequence[int], end: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Return how far the last windows reach out of the padded input when sizes are rounded up."""
    beyond = []
    for n, before, behind, window, step in zip(size, begin, end, reach, strides, strict=True):
        windows = math.ceil((n + before + behind - window) / step) + 1
        if (windows - 1) * step >= n + before:  # would begin in the padding behind
            windows -= 1
        beyond.append(max((windows - 1) * step + window - n - before - behind, 0))
    return beyond


def _means(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    run: Any
    if max(dilations) == 1:
        run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
        made: Tensor = run(x, list(kernel), list(strides))
        return made
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    ones = x.new_full((x.shape[1], 1, *kernel), 1 / math.prod(kernel))
    weighed: Tensor = run(x, ones, None, list(strides), 0, list(dilations), x.shape[1])
    return weighed


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over every spatial axis, which stay with size one."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """Largest value over every spatial axis, which stay with size one."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)
