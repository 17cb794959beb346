"""Convolutions and products with matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tersor.graph.corrections.patches import same_pads
from tersor.graph.training.ops.arguments import interleaved, window_over
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = ["conv", "conv_transpose", "einsum", "gemm"]


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution of [N, I, ...] with [O, I / group, ...] over one to three spatial axes."""
    spatial = x.ndim - 2
    strides, dilations, _, begin, end = window_over(
        x.shape[2:], weight.shape[2:], strides=strides, dilations=dilations, auto_pad=auto_pad, pads=pads
    )
    if begin != end:
        x, begin = functional.pad(x, interleaved(begin, end)), [0] * spatial
    run: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    made: Tensor = run(x, weight, bias, strides, begin, dilations, group)
    return made


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Transpose of the convolution with [I, O / group, ...]: the whole of it, then what the paddings leave."""
    kernel, spatial = list(weight.shape[2:]), x.ndim - 2
    strides, dilations = list(strides or [1] * spatial), list(dilations or [1] * spatial)
    extra = list(output_padding or [0] * spatial)
    whole = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)]
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is None:
        begin, end = same_pads(auto_pad, pads, whole, whole, strides)
    else:
        total = [w + e - o for w, e, o in zip(whole, extra, output_shape[-spatial:], strict=True)]
        half = [n // 2 for n in total]
        rest = [n - h for n, h in zip(total, half, strict=True)]
        begin, end = (half, rest) if auto_pad == "SAME_UPPER" else (rest, half)
    run: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[spatial - 1]
    made: Tensor = run(x, weight, None, strides, 0, 0, group, dilations)
    made = functional.pad(made, interleaved([-b for b in begin], [e - cut for e, cut in zip(extra, end, strict=True)]))
    return made if bias is None else made + bias.reshape(-1, *[1] * spatial)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """`alpha` A B + `beta` C."""
    product = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1:
        product = product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Sum of products along named axes."""
    return torch.einsum(equation, *operands)
