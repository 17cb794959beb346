"""AWQ: scale up the input columns that matter before rounding, and the operation before the layer down by as much.

Source: Lin et al. 2023, arXiv:2306.00978; the scale with the weights' share ("duo") is AutoAWQ's.
Differs: the search minimises the exact output error tr(E H Eᵀ) of all weights that read the input, with H in place of
forward passes, and looks closely only around the best of a few exponents. Clipping is a method of its own, `clip`. A
rewrite: the function of the model stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.kernels.lazy import LazyModule
from tersor.methods import rtn
from tersor.methods.error import output_error
from tersor.methods.solving.factor import checked_statistic
from tersor.methods.solving.matrix import checked_weight

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["input_scales"]

RATIOS = 20
COARSE = 5  # exponents that are tried first
LEAST_SCALE = 1e-4


def input_scales(
    weights: Sequence[Tensor], fmt: Format, *, hessian: Tensor, ratios: int = RATIOS, threads: int = 0
) -> Tensor:
    """Scales of the input columns, float32 [in] > 0, all 1 where no scaling helps.

    weights  matrices [out, in] float32 that read the same input; not modified
    hessian  [in, in] float32, mean of x xᵀ over calibration tokens
    ratios   steps of the exponent of the activations, from 0 to 1
    The caller multiplies the columns of the weights by the scales (`smoothquant.scaled_columns`) and divides what
    produces the input by them (`smoothquant.divided_outputs`).
    """
    if not weights or ratios < 1:
        raise SchemeError("AWQ needs at least one weight and one ratio")
    matrices = [checked_weight(weight, fmt) for weight in weights]
    h = checked_statistic("the Hessian", hessian, matrices[0].shape[1])
    activation = h.diagonal().clamp(min=0).sqrt()
    share = torch.cat([m.abs() / m.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) for m in matrices]).mean(dim=0)
    best = torch.ones_like(activation)
    even = least = _loss(matrices, fmt, h, best, threads)
    stride = max(1, ratios // COARSE)
    for divisor in (share, None):
        losses = {0: even}
        for is_close in (False, True):
            near = min(losses, key=lambda step: losses[step])
            steps = range(near - stride + 1, near + stride) if is_close else range(stride, ratios + 1, stride)
            for step in (step for step in steps if 0 < step <= ratios and step not in losses):
                scales = _scales(activation, divisor, step / ratios)
                losses[step] = _loss(matrices, fmt, h, scales, threads)
                if losses[step] < least:
                    best, least = scales, losses[step]
    return best


def _scales(activation: Tensor, share: Tensor | None, ratio: float) -> Tensor:
    """Activations to the power of the ratio, divided by the weights' share to the rest of it, around 1."""
    scales = activation.pow(ratio)
    if share is not None:
        scales = scales / share.clamp(min=LEAST_SCALE).pow(1 - ratio)
    scales = scales.clamp(min=LEAST_SCALE)
    return scales / (scales.max() * scales.min()).sqrt()


def _loss(matrices: list[Tensor], fmt: Format, hessian: Tensor, scales: Tensor, threads: int) -> float:
    """Output error of all weights, rounded behind the scales; infinite where the format cannot hold what is scaled."""
    importance = hessian.diagonal().clamp(min=0) / scales.square()
    total = 0.0
    for matrix in matrices:
        scaled = matrix * scales
        if float(scaled.abs().max()) > fmt.largest:
            return math.inf
        packed = rtn.quantize(scaled, fmt, importance=importance, threads=threads)
        values = torch.from_numpy(packed.dequantize(threads)).to(matrix.device) / scales
        total += output_error(matrix, values, hessian)
    return total
