"""What a quantized weight costs on the inputs of its layer: the figure that methods are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.tensor import QuantizedTensor
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["layer_error", "output_error"]


def layer_error(
    weight: Tensor,
    quantized: QuantizedTensor,
    hessian: Tensor,
    *,
    cross: Tensor | None = None,
    full: Tensor | None = None,
) -> float:
    """Mean squared error of the layer's outputs over calibration tokens, summed over outputs.

    weight   [out, in] float32
    hessian  [in, in] mean of x xᵀ, x the inputs that the quantized weight will see
    cross    [in, in] mean of y xᵀ, y the same tokens' inputs in the full-precision model: then the error against W y is
             meant instead of the one against W x
    full     [in, in] mean of y yᵀ; without it the error against W y lacks the same constant for every quantized weight
    Products run in float32, their sums in float64. Never negative, but for the missing constant.
    """
    values = torch.from_numpy(quantized.dequantize()).to(weight.device)
    return output_error(weight, values, hessian, cross=cross, full=full)


def output_error(
    weight: Tensor, values: Tensor, hessian: Tensor, *, cross: Tensor | None = None, full: Tensor | None = None
) -> float:
    """`layer_error` of values [out, in] float32 instead of a quantized tensor."""
    if cross is None:
        error = weight - values
        # Where a Hessian of low rank sees nothing of the error, what is left is rounding, of either sign.
        return max(0.0, float(((error @ hessian) * error).sum(dtype=torch.float64)))
    squares = ((values @ hessian) * values).sum(dtype=torch.float64)
    shared = ((weight @ cross) * values).sum(dtype=torch.float64)
    wanted = weight.new_zeros((), dtype=torch.float64)
    if full is not None:
        wanted = ((weight @ full) * weight).sum(dtype=torch.float64)
    return float(wanted - 2 * shared + squares)
