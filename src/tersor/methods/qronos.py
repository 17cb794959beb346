"""GPTQ towards the outputs of the full-precision model: what earlier layers got wrong is made good where it can be.

Source: Zhang et al. 2025 (Qronos), arXiv:2505.11695, and Li et al. 2025 (GPTAQ), arXiv:2504.02692.
Differs: the correction is done at once and in closed form, before the first column is rounded, and only in part:
argmin ‖W y - V x‖² over V is W C H⁻¹ = W + W (C - H) H⁻¹, which fits the noise of few calibration tokens as well. So H
gets a larger diagonal in it than in the rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError, ShapeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.feedback import State, propagate
from tersor.kernels.lazy import LazyModule
from tersor.methods import gptq, rtn
from tersor.methods.solving.factor import Order, checked_statistic, damped, factor
from tersor.methods.solving.matrix import checked_weight, finished, held, slabs, upright
from tersor.methods.solving.remembered import remembered
from tersor.methods.solving.triangular import cholesky, cholesky_solved

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["corrected", "quantize", "towards"]


def quantize(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    cross: Tensor,
    residual: Tensor | None = None,
    strength: float = 1.0,
    trust: float = 0.3,
    damping: float = 0.01,
    order: Order = "activation",
    rounds: int = 0,
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight` so that its outputs come close to those of the full-precision model.

    weight    [out, in] float32; not modified
    hessian   [in, in] float32, mean of x xᵀ, x the inputs behind the layers quantized so far
    cross     [in, in] float32, mean of y xᵀ, y the same tokens' inputs in the full-precision model
    residual  [out, in] float32, mean of (s - r) xᵀ, s and r what the outputs are added to in the full-precision and
              the quantized model; None: nothing, or equal
    strength, trust  see `corrected`; the others as in gptq
    """
    return towards(
        weight,
        fmt,
        hessian=hessian,
        cross=cross,
        residual=residual,
        strength=strength,
        trust=trust,
        damping=damping,
        order=order,
        rounds=rounds,
        threads=threads,
    )[0]


def towards(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    cross: Tensor,
    residual: Tensor | None = None,
    strength: float = 1.0,
    trust: float = 0.3,
    damping: float = 0.01,
    order: Order = "activation",
    rounds: int = 0,
    threads: int = 0,
) -> tuple[QuantizedTensor, Tensor]:
    """As `quantize`, and the corrected weight that it was to come close to."""
    x = checked_weight(weight, fmt)
    h = checked_statistic("the Hessian", hessian, x.shape[1])
    c = checked_statistic("the cross matrix", cross, x.shape[1])
    factored = factor(h, order=order, block=fmt.block, damping=damping)
    if factored is None:
        return rtn.quantize(weight, fmt, fallback=gptq.NOT_DEFINITE, threads=threads), x
    made, wanted = [], torch.empty_like(x)
    _check_residual(x, residual)
    for rows in slabs(x, fmt):
        part = None if residual is None else residual[rows]
        wanted[rows] = corrected(x[rows], h, c, residual=part, strength=strength, trust=trust, threads=threads)
        target = checked_weight(held(wanted[rows], fmt), fmt)
        made.append(gptq.packed(target, fmt, factored, order=order, rounds=rounds, threads=threads))
    return finished(fmt, weight, torch.cat(made), None), wanted


def corrected(
    weight: Tensor,
    hessian: Tensor,
    cross: Tensor,
    *,
    residual: Tensor | None = None,
    strength: float = 1.0,
    trust: float = 0.3,
    threads: int = 0,
) -> Tensor:
    """The weight [out, in] float32 that on the quantized model's inputs gives about the full-precision model's outputs.

    strength  share of the correction that is made, 0 … 1; 0, or cross equal to hessian: exactly the weight
    trust     share of the mean diagonal added to the Hessian, > 0: the larger, the less weights move
    """
    if not 0 <= strength <= 1 or not trust > 0:
        raise SchemeError(f"strength lies between 0 and 1 and trust above 0, got {strength} and {trust}")
    _check_residual(weight, residual)
    if strength == 0:
        return weight
    lower = _trusted(hessian, trust)
    if lower is None:
        return weight
    turn = _turn(lower, hessian, cross, strength)
    x = upright(weight)
    state = State(x.clone(), x, x, x, torch.zeros_like(x, dtype=torch.uint8))
    propagate(state, turn, 0, len(x), 0, threads=threads)
    out = state.target[:, : len(weight)].T.contiguous()
    if residual is not None:
        out += strength * cholesky_solved(lower, residual.T).T
    return out


def _check_residual(weight: Tensor, residual: Tensor | None) -> None:
    if residual is not None and residual.shape != weight.shape:
        raise ShapeError(
            f"the residual must have the weight's shape {tuple(weight.shape)}, got {tuple(residual.shape)}"
        )


@remembered
def _trusted(hessian: Tensor, trust: float) -> Tensor | None:
    """The lower factor of the Hessian with a share of its mean diagonal added."""
    return cholesky(damped(hessian, trust))


@remembered
def _turn(lower: Tensor, hessian: Tensor, cross: Tensor, strength: float) -> Tensor:
    """What weights are multiplied with to get their correction: (C - H) H⁻¹."""
    return (strength * cholesky_solved(lower, (cross - hessian).T).T).contiguous()
