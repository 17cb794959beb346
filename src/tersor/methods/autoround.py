"""AutoRound: learn by signed gradient steps which way every weight is rounded, and how far its group's scale reaches.

Source: Cheng et al. 2023 (SignRound), arXiv:2309.05516.
Differs: the loss of a layer is tr((W - Q) H (W - Q)ᵀ), so that no activations are needed; `gradient` puts another
loss, of a whole block say, in its place. A weight's own rounding error is kept out of its gradient, the shift stands
for it: otherwise every weight drifts to the edge between two codes and flips there at every step. Scales stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.factor import checked_statistic, damped
from tersor.methods.solving.matrix import MatrixGrid, checked_weight, finished
from tersor.methods.solving.search import fitted

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["quantize"]


def quantize(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    steps: int = 200,
    damping: float = 0.01,
    gradient: Callable[[Tensor], tuple[float, Tensor]] | None = None,
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight` with learned rounding; the step with the least loss is kept.

    weight    [out, in] float32; not modified
    hessian   [in, in] float32, mean of x xᵀ over calibration tokens
    steps     gradient steps; each costs a product [out, in] · [in, in]
    gradient  values [out, in] → their loss and half its gradient; None: tr(E H Eᵀ)
    SchemeError for formats whose codes are not evenly spaced.
    """
    if steps < 1:
        raise SchemeError(f"learned rounding needs at least one step, got {steps}")
    x = checked_weight(weight, fmt)
    h = damped(checked_statistic("the Hessian", hessian, x.shape[1]), damping)
    grid = fitted(x, fmt, h.diagonal().contiguous(), threads=threads)
    place, step = _places(x, grid)
    curvature = h.diagonal()
    shift = torch.zeros_like(x)
    best, least = grid.round(x), float("inf")
    for k in range(steps):
        codes = (place + shift).round().clamp(0, _levels(grid) - 1)
        values = grid.values(codes.to(torch.int32))
        if gradient is None:
            slope = (values - x) @ h
            loss = float(((values - x) * slope).sum(dtype=torch.float64))
        else:
            loss, slope = gradient(values)
        if loss < least:
            best, least = codes.to(torch.int32), loss
        rate = (1 - k / steps) / steps
        others = slope - (values - x) * curvature
        shift = (shift - rate * torch.sign(others * step + curvature * step.square() * shift)).clamp(-0.5, 0.5)
    return finished(fmt, weight, grid.pack(best), None)


def _places(weight: Tensor, grid: MatrixGrid) -> tuple[Tensor, Tensor]:
    """Where the weights lie between codes, and the step of each: float32 [rows, columns]."""
    lattice = grid.lattice
    if lattice is None or lattice.table is not None:
        raise SchemeError(f"autoround needs evenly spaced codes, which {grid.format.name} has not: use gptq or best")
    width = lattice.width or grid.width
    parts = (lattice.step, lattice.offset, lattice.zero)
    step, offset, zero = (part.repeat_interleave(width, dim=1).reshape(weight.shape) for part in parts)
    place = torch.where(step != 0, (weight + offset) / step, torch.zeros_like(weight)) + zero
    return place.clamp(-1, lattice.levels), step


def _levels(grid: MatrixGrid) -> int:
    assert grid.lattice is not None, "checked with the places"
    return grid.lattice.levels
