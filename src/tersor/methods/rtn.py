"""Round to nearest on the best grid for the importance of each column: needs no more than the diagonal of the Hessian.

Source: the searches "best" and "ggml" of the formats; importance as llama.cpp's imatrix has it (mean of x²).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.methods.solving.matrix import checked_weight, finished
from tersor.methods.solving.search import fitted

if TYPE_CHECKING:
    from torch import Tensor

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
    grid = fitted(x, fmt, importance, threads=threads)
    return finished(fmt, weight, grid.pack(grid.round(x)), fallback)
