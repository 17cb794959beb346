"""What the Hessian of a layer's inputs says about the order of columns and about where errors may go.

For inputs x with H = E[x xᵀ], the output error of a quantized weight is tr((W - Q) H (W - Q)ᵀ). With H = R Rᵀ, R upper
triangular, that is Σ_j R_jj² (t_j - q_j)², where t_j = w_j + Σ_{k<j} (w_k - q_k) R_kj / R_jj: to round the columns in
order, each to the value nearest to t_j, is GPTQ (Frantar et al. 2022, arXiv:2210.17323). The inverse of H and its
Cholesky factor are not needed: R is the Cholesky factor of H read from the last column to the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.remembered import remembered
from tersor.methods.solving.triangular import cholesky, is_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["ORDERS", "Factor", "Order", "checked_statistic", "damped", "factor"]

Order = Literal["natural", "activation", "groups"]
"""natural: as stored; activation: by falling diag(H); groups: whole blocks by falling sum of diag(H)."""

ORDERS: tuple[Order, ...] = ("natural", "activation", "groups")

MOST_DAMPING = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A factored Hessian; one factor serves every weight that reads the same inputs.

    hessian  float32 [in, in], damped, columns as stored
    matrix   float32 [in, in], R_kj / R_jj above the diagonal, columns in `order`; what feedback multiplies errors with
    order    int64 [in], the stored column that is rounded k-th; None: as stored
    damping  share of the mean diagonal that was added, after escalation
    """

    hessian: Tensor
    matrix: Tensor
    order: Tensor | None
    damping: float


@remembered
def factor(hessian: Tensor, *, order: Order = "activation", block: int = 0, damping: float = 0.01) -> Factor | None:
    """Factor a Hessian; None if it is not positive definite even with its mean diagonal added.

    hessian  [in, in] float32, not modified; only finite values
    order    see Order
    block    columns of one group, for the order "groups"
    damping  share of the mean diagonal added to the diagonal, > 0; tenfold as often as the factorization fails, up to 1
    """
    if order not in ORDERS:
        raise SchemeError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if not 0 < damping <= MOST_DAMPING:
        raise SchemeError(f"damping is a share of the mean diagonal, above 0 and at most 1, got {damping}")
    permutation = _order(hessian.diagonal(), order, block)
    backwards = torch.arange(len(hessian), device=hessian.device) if permutation is None else permutation
    backwards, share = backwards.flip(0), damping
    while True:
        mended = damped(hessian, share)
        lower = cholesky(_reordered(mended, backwards))
        if lower is not None:
            break
        if share >= MOST_DAMPING:
            return None
        share = min(share * 10, MOST_DAMPING)
    matrix = lower.div_(lower.diagonal().clone()).flip(0, 1)  # the factor of H read backwards is upper triangular
    return Factor(mended, matrix, permutation, share)


def _reordered(symmetric: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of a symmetric matrix in another order, by whole rows."""
    return symmetric[order].T.contiguous()[order]


def damped(hessian: Tensor, share: float) -> Tensor:
    """A copy with that share of its mean diagonal added to the diagonal.

    That alone makes columns that never saw an input independent of all others. A Hessian of zeros gets `share` itself.
    """
    out = hessian.clone()
    diagonal = hessian.diagonal().clamp(min=0)
    mean = diagonal.mean()
    out.diagonal().copy_(diagonal + share * torch.where(mean > 0, mean, torch.ones_like(mean)))
    return out


def checked_statistic(name: str, statistic: Tensor, columns: int) -> Tensor:
    """A Hessian or cross matrix as float32; ShapeError for another shape, FormatError naming the first NaN or Inf."""
    if tuple(statistic.shape) != (columns, columns):
        raise ShapeError(f"{name} of {columns} columns must be [{columns}, {columns}], got {tuple(statistic.shape)}")
    if not is_finite(statistic):
        row, column = map(int, (~statistic.isfinite()).nonzero()[0])
        value = float(statistic[row, column])
        raise FormatError(
            f"{name} is {value} at row {row}, column {column}: calibrate again, with inputs that are finite"
        )
    return statistic.to(torch.float32)


def _order(diagonal: Tensor, order: Order, block: int) -> Tensor | None:
    if order == "natural":
        return None
    if order == "activation" or not block:
        return torch.argsort(diagonal, descending=True, stable=True)
    sums = diagonal.reshape(-1, block).sum(dim=1)
    first = torch.argsort(sums, descending=True, stable=True)[:, None] * block
    inside = torch.argsort(diagonal.reshape(-1, block), dim=1, descending=True, stable=True)
    return (first + inside[first[:, 0] // block]).reshape(-1)
