"""The grid of a matrix, fitted with the importance of its columns: the format's own search, or a search for integers.

Integer formats spread their codes over the whole range of a group. Here a smaller range is tried as well: what a few
outliers lose, all others win. For each trial the codes give scale (and zero point) by least squares.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tersor.core.format import Format
from tersor.formats.integer import IntegerGrid
from tersor.kernels.lazy import LazyModule
from tersor.methods.solving.matrix import MatrixGrid, encoded
from tersor.methods.solving.scales import stored_scale

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["fitted"]

SHRINKS = tuple(1 - k / 40 for k in range(21))  # of the range: 1 … 0.5
AT_ONCE = 1 << 17  # weights searched together, while they stay in the cache; changes no result


def fitted(weight: Tensor, fmt: Format, importance: Tensor | None, *, threads: int = 0) -> MatrixGrid:
    """Grid of a matrix [rows, columns]; importance [columns] > 0, what a squared error of each column costs."""
    columns = int(weight.shape[1])
    data = encoded(weight, fmt, importance=importance, threads=threads)
    grid, _ = MatrixGrid.unpacked(fmt, data, columns)
    if fmt.family != "integer" or importance is None or fmt.span == "tensor":
        return grid
    return searched(weight, grid, importance)


def searched(weight: Tensor, plain: MatrixGrid, importance: Tensor) -> MatrixGrid:
    """Of all shrunken ranges and their least-squares refits the ones with the least weighted error, as stored."""
    first: IntegerGrid = plain.grid  # type: ignore[assignment]  # the family says so
    blocks = weight.reshape(-1, plain.width)
    per_row = plain.columns // plain.width
    share = importance.reshape(per_row, plain.width)
    parts = []
    step = max(1, AT_ONCE // plain.columns) * per_row
    for start in range(0, len(blocks), step):
        rows = slice(start, start + step)
        part = replace(first, scale=first.scale[rows], zero=first.zero[rows])
        parts.append(_searched(blocks[rows], share.repeat(len(part.scale) // per_row, 1), part, plain.format))
    scale, zero = (torch.cat([getattr(part, name) for part in parts]) for name in ("scale", "zero"))
    return replace(plain, grid=replace(first, scale=scale, zero=zero))


def _searched(x: Tensor, w: Tensor, first: IntegerGrid, fmt: Format) -> IntegerGrid:
    """The scale that explains the most of Σ w·x², refitted once more; the first one where that errs less."""
    low, high = (-first.zero[:, None]).to(x.dtype), (first.levels - 1 - first.zero[:, None]).to(x.dtype)
    wx = w * x
    best, most = first.scale, torch.zeros_like(first.scale)
    for shrink in (*SHRINKS, None):
        scale = best if shrink is None else first.scale * shrink
        level = torch.minimum(torch.maximum((x / scale[:, None]).round_(), low), high)
        along, squares = (wx * level).sum(dim=1), (w * level.square()).sum(dim=1)
        refit, gain = along / squares, along.square() / squares
        better = (squares > 0) & (along > 0) & (gain > most)
        best, most = torch.where(better, refit, best), torch.where(better, gain, most)
    found = replace(first, scale=stored_scale(fmt, best, first.scale))
    better = _error(x, w, found) < _error(x, w, first)
    return replace(first, scale=torch.where(better, found.scale, first.scale))


def _error(x: Tensor, w: Tensor, grid: IntegerGrid) -> Tensor:
    return (w * (grid.values(grid.round_all(x)) - x).square()).sum(dim=1)
