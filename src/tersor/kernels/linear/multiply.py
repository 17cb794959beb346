"""Activations times a packed weight: checks them, then hands them to the native kernel or to the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import ShapeError
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.weights import PackedWeight
from tersor.kernels.on_torch import kinds, on_torch
from tersor.kernels.reference import linear as definition
from tersor.kernels.reference.linear import Digits

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["multiply"]


def multiply(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, digits: Digits = 1, per_token: bool = False
) -> Tensor:
    """Return x · weightᵀ + bias, [..., rows] in the type of `x`; sums are float32.

    x          float32, float16 or bfloat16 [..., columns] on the CPU
    bias       float32 [rows]
    digits     bytes of the codes that activations are rounded to
    per_token  whether all activations of a token share a scale; else those of each group of the weight do
    Runs on as many threads as torch has; their number changes no bit. Raises ShapeError.
    """
    kind, shape = kinds().get(x.dtype, -1), x.shape
    if kind < 0 or not shape or shape[-1] != weight.columns or not x.is_cpu:
        raise ShapeError(
            f"a weight [{weight.rows}, {weight.columns}] takes float32, float16 or bfloat16 [..., {weight.columns}] "
            f"on the CPU, got {x.dtype} {tuple(shape)} on {x.device}"
        )
    if bias is not None and not (
        bias.dtype == torch.float32 and bias.shape == (weight.rows,) and bias.is_contiguous() and bias.is_cpu
    ):
        raise ShapeError(
            f"the bias must be contiguous float32 [{weight.rows}] on the CPU, got {bias.dtype} {tuple(bias.shape)} "
            f"on {bias.device}"
        )
    arguments, module = weight.arguments, on_torch()  # asked for once a weight, and where it lies is looked at then
    if module is None:
        rows = x.reshape(-1, weight.columns)
        made = definition.multiply(rows, *weight.unpacked(), bias, digits=digits, per_token=per_token)
        return made.to(x.dtype).reshape(*shape[:-1], weight.rows)
    y = x.new_empty((*shape[:-1], weight.rows))
    tokens = x.numel() // weight.columns
    if not tokens:
        return y
    x = x.contiguous()
    place = 0 if bias is None else bias.data_ptr()
    how = (tokens, digits, per_token, x.data_ptr(), kind, y.data_ptr(), kind, torch.get_num_threads())
    module.linear(*arguments, place, *how)
    return y
