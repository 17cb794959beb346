"""FOEM: GPTQ that pulls each column back a little towards its own weights before it is rounded.

Source: Zheng et al. 2025 (First-Order Error Matters), arXiv:2507.11017. Feedback moves the columns still to come away
from their weights, where the gradient of the loss is no longer zero; to first order it is (t - w) H. Put into the
solution, H falls out, and what is left to do is to take back a share of t - w.
Differs: as in the authors' code each column is pulled back once, when its turn comes; after every step, as the
equation has it, feedback is forgotten within some tens of columns, and little better than rounding is left. With
H = (U D)(U D)ᵀ and M = U - 1 that is one feedback, t = w + (w - q) (1 - β) M (1 + β M)⁻¹, which the kernels of GPTQ
compute.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.lazy import LazyModule
from tersor.methods import gptq, rtn
from tersor.methods.solving.factor import Order, checked_statistic, factor
from tersor.methods.solving.matrix import checked_weight, finished
from tersor.methods.solving.remembered import remembered
from tersor.methods.solving.triangular import solved

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["quantize", "restrained"]


def quantize(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    pull: float = 0.1,
    damping: float = 0.01,
    order: Order = "activation",
    rounds: int = 0,
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight` by error feedback that does not move columns as far as the Hessian alone would have them.

    weight   [out, in] float32; not modified
    hessian  [in, in] float32, mean of x xᵀ over calibration tokens
    pull     β, the share of its move that each column takes back, 0 … 1; 0: exactly gptq, 1: each weight by itself
    The others as in gptq.
    """
    if not 0 <= pull <= 1:
        raise SchemeError(f"pull lies between 0 and 1, got {pull}")
    x = checked_weight(weight, fmt)
    h = checked_statistic("the Hessian", hessian, x.shape[1])
    factored = factor(h, order=order, block=fmt.block, damping=damping)
    if factored is None:
        return rtn.quantize(weight, fmt, fallback=gptq.NOT_DEFINITE, threads=threads)
    turned = replace(factored, matrix=restrained(factored.matrix, pull))
    return finished(fmt, weight, gptq.packed(x, fmt, turned, order=order, rounds=rounds, threads=threads), None)


@remembered
def restrained(matrix: Tensor, pull: float) -> Tensor:
    """The feedback (1 - β) M (1 + β M)⁻¹ in place of M, M what stands above the diagonal of `matrix`."""
    strict = torch.triu(matrix, 1)
    return solved(pull * strict, (1 - pull) * strict, upper=True, unit=True)
