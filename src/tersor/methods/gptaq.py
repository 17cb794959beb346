"""GPTAQ: GPTQ that also makes good, column by column, what the inputs of a layer lost before they reached it.

Source: Li et al. 2025 (GPTAQ), arXiv:2504.02692, algorithm 1. After column k is rounded, the columns still to come take
over w_k (y_k - x_k), what the column's input lacks, as well as its rounding error.
Differs: both updates are one triangular feedback. With H = (U D)(U D)ᵀ, U unit upper triangular, let
S = strictly upper part of (C - H) U⁻ᵀ D⁻²; then the value that column j is rounded from is column j of
t = w A + (w - q) (U - 1) A, A = (1 - S)⁻¹, which the kernels of GPTQ compute. Grids are fitted to w A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.feedback import State, propagate
from tersor.kernels.lazy import LazyModule
from tersor.methods import gptq, rtn
from tersor.methods.solving.factor import Factor, Order, checked_statistic, factor
from tersor.methods.solving.matrix import checked_weight, finished, held, upright
from tersor.methods.solving.remembered import remembered
from tersor.methods.solving.triangular import solved

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["asymmetric", "quantize"]


def quantize(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    cross: Tensor,
    strength: float = 0.25,
    damping: float = 0.01,
    order: Order = "activation",
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight` so that later columns make up for what the inputs of earlier ones lack.

    weight    [out, in] float32; not modified
    hessian   [in, in] float32, mean of x xᵀ, x the inputs behind the layers quantized so far
    cross     [in, in] float32, mean of y xᵀ, y the same tokens' inputs in the full-precision model
    strength  share of the lack that is made up for, 0 … 1; 0, or cross equal to hessian: exactly gptq
    The others as in gptq.
    """
    if not 0 <= strength <= 1:
        raise SchemeError(f"strength lies between 0 and 1, got {strength}")
    x = checked_weight(weight, fmt)
    h = checked_statistic("the Hessian", hessian, x.shape[1])
    c = checked_statistic("the cross matrix", cross, x.shape[1])
    factored = factor(h, order=order, block=fmt.block, damping=damping)
    if factored is None:
        return rtn.quantize(weight, fmt, fallback=gptq.NOT_DEFINITE, threads=threads)
    leading, feedback = asymmetric(
        factored.matrix, factored.hessian, factored.order, hessian=h, cross=c, strength=strength
    )
    target = checked_weight(held(_led(x, leading, factored.order, threads), fmt), fmt)
    turned = Factor(factored.hessian, feedback, factored.order, factored.damping)
    return finished(fmt, weight, gptq.packed(x, fmt, turned, order=order, target=target, threads=threads), None)


@remembered
def asymmetric(
    matrix: Tensor, damped: Tensor, order: Tensor | None, *, hessian: Tensor, cross: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """What weights add to the targets of later columns, A - 1, and what their errors add, (U - 1) A.

    matrix, damped, order  of the factored Hessian: U, H, and the order of columns; the others as in `quantize`
    Both float32 [in, in] with the columns in order.
    """
    lack = strength * (cross - hessian)
    if order is not None:
        damped, lack = damped[order][:, order], lack[order][:, order]
    upper, lack = matrix.double(), lack.double()
    # diag(H) = U∘U · D²: the pivots, without factoring again.
    pivots = solved(upper.square(), damped.diagonal().double()[:, None], upper=True)[:, 0]
    behind = solved(upper, lack.T, upper=True).T
    one = torch.eye(len(upper), dtype=torch.float64, device=upper.device)
    taken = one - torch.triu(behind, 1) / pivots
    leading = solved(taken, one, upper=True, unit=True)
    feedback = torch.triu(upper, 1) @ leading
    return (leading - one).float().contiguous(), feedback.float().contiguous()


def _led(weight: Tensor, leading: Tensor, order: Tensor | None, threads: int) -> Tensor:
    """W A, [rows, columns as stored]; every row by itself."""
    x = upright(weight if order is None else weight[:, order])
    state = State(x.clone(), x, x, x, torch.zeros_like(x, dtype=torch.uint8))
    propagate(state, leading, 0, len(x), 0, threads=threads)
    found = state.target[:, : len(weight)].T
    if order is None:
        return found.contiguous()
    out = torch.empty_like(weight)
    out[:, order] = found
    return out
