"""Round to nearest on the best grid for the importance of each column: needs no more than the diagonal of the Hessian.

Source: the searches "best" and "ggml" of the formats; importance as llama.cpp's imatrix has it (mean of x²).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.matrix import checked_weight, finished, slabs
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
    importance: Tensor | None = None,
    fallback: str | None = None,
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight`, each weight by itself.

    weight      [out, in] float32; not modified
    importance  [in] float32 ≥ 0, mean of x² over calibration tokens; None: no preference
    fallback    why this is not the method that was asked for
    threads     0: as many as there are cores; never changes the codes
    """
    x = checked_weight(weight, fmt)
    made = []
    for rows in slabs(x, fmt):
        grid = fitted(x[rows], fmt, importance, threads=threads)
        made.append(grid.pack(grid.round(x[rows])))
    return finished(fmt, weight, torch.cat(made), fallback)
