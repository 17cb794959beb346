"""HQQ: a grid that outliers do not spoil, without any calibration: error to the power p < 1 counts, not its square.

Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models".
Differs: the quadratic half is solved by each format's own search (scales and minima of any kind), not for a float zero
point alone; the round with the least p-norm is kept, so that the result never errs more by it than the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.matrix import checked_weight, finished
from tersor.methods.solving.search import fitted

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["quantize"]

GROWTH = 1.01  # of beta, a round


def quantize(
    weight: Tensor, fmt: Format, *, power: float = 0.7, beta: float = 10.0, rounds: int = 20, threads: int = 0
) -> QuantizedTensor:
    """Quantize `weight` with few large errors in place of many small ones.

    weight   [out, in] float32; not modified
    power    exponent of the error that is minimised, above 0 and at most 1
    beta     how closely the split-off outliers follow the error, in units of 1 / mean error
    rounds   of splitting and fitting; ends early where the error no longer falls
    """
    if not 0 < power <= 1 or not beta > 0:
        raise SchemeError(f"power lies above 0 and up to 1 and beta above 0, got {power} and {beta}")
    x = checked_weight(weight, fmt)
    even = torch.ones(x.shape[1], dtype=torch.float32, device=x.device)
    best = fitted(x, fmt, even, threads=threads)
    codes = best.round(x)
    error = x - best.values(codes)
    least = float(error.abs().pow(power).sum(dtype=torch.float64))
    unit = error.abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for _ in range(rounds):
        outliers = _shrunk(error / unit, power, beta) * unit
        grid = fitted(x - outliers, fmt, even, threads=threads)
        trial = grid.round(x)
        error = x - grid.values(trial)
        found = float(error.abs().pow(power).sum(dtype=torch.float64))
        if found >= least:
            break
        best, codes, least = grid, trial, found
        beta *= GROWTH
    return finished(fmt, weight, best.pack(codes), None)


def _shrunk(error: Tensor, power: float, beta: float) -> Tensor:
    """The generalised soft threshold: what of each error counts as an outlier."""
    magnitude = error.abs()
    threshold = power / beta * magnitude.clamp(min=1e-8).pow(power - 1)
    return error.sign() * (magnitude - threshold).clamp(min=0)
