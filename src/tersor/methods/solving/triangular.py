"""Cholesky factors and triangular systems, whose bits do not depend on how many threads torch has.

LAPACK splits sums by threads, and so do products of matrices that are narrow and sum over much. Here LAPACK sees
corners of PANEL columns, in one thread, and all else are products that sum over PANEL values at a time, which MKL and
OpenBLAS split by rows and columns. That is the faster way, too: about twice as fast as one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["cholesky", "cholesky_solved", "is_finite", "solved"]

PANEL = 512
"""Wide enough for products that are worth it, and few enough that none is split along its sum."""


def cholesky(matrix: Tensor) -> Tensor | None:
    """Lower L with L Lᵀ = `matrix`, which is overwritten; None where it is not positive definite."""
    for start in range(0, len(matrix), PANEL):
        stop = min(start + PANEL, len(matrix))
        panel = matrix[start:, start:stop]
        if start:
            _take_product(panel, matrix[start:, :start], matrix[start:stop, :start].T)
        with _one_thread():
            corner, failed = torch.linalg.cholesky_ex(panel[: stop - start])
            if failed or not bool(corner.diagonal().isfinite().all()):
                return None
            panel[: stop - start] = corner
            below = panel[stop - start :]
            below.copy_(torch.linalg.solve_triangular(corner.T, below, upper=True, left=False))
        matrix[start:stop, stop:] = 0
    return matrix if is_finite(matrix) else None


def solved(matrix: Tensor, right: Tensor, *, upper: bool, unit: bool = False) -> Tensor:
    """X with T X = `right`, [n, m], T the lower or upper triangle of `matrix`.

    unit  whether ones are read in place of its diagonal
    """
    out = right.clone()
    starts = range(0, len(matrix), PANEL)
    for start in reversed(starts) if upper else starts:
        stop = min(start + PANEL, len(matrix))
        known = slice(stop, None) if upper else slice(0, start)
        _take_product(out[start:stop], matrix[start:stop, known], out[known])
        corner = matrix[start:stop, start:stop]
        with _one_thread():
            out[start:stop] = torch.linalg.solve_triangular(corner, out[start:stop], upper=upper, unitriangular=unit)
    return out


def cholesky_solved(lower: Tensor, right: Tensor) -> Tensor:
    """X with L Lᵀ X = `right`, [n, m]."""
    return solved(lower.T, solved(lower, right, upper=False), upper=True)


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass where that is so."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _take_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out -= left · right, a panel of what is summed over at a time."""
    for start in range(0, len(right), PANEL):
        out -= left[:, start : start + PANEL] @ right[start : start + PANEL]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
