"""GPTQ: round columns one at a time, moving each error onto the columns still to come, on the grid of any format.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1. Grids refitted part-way, order by activation and grids fixed
beforehand: the authors' code (`--act-order`, `--static-groups`).
Differs: errors are fed forward with the factor of H itself, read backwards, instead of the factor of its inverse: the
same codes for a quarter of the work before the loop (see `factor`). Scales and codes may be refined in turn afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.feedback import Points, State, propagate, settle
from tersor.kernels.lazy import LazyModule
from tersor.methods import rtn
from tersor.methods.solving.factor import Factor, Order, checked_statistic, factor
from tersor.methods.solving.matrix import MatrixGrid, checked_weight, finished, slabs, upright
from tersor.methods.solving.refine import refined
from tersor.methods.solving.search import fitted

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["NOT_DEFINITE", "Solution", "packed", "quantize", "settled", "solve"]

NOT_DEFINITE = "the Hessian is not positive definite, even with its mean diagonal added: rounded to nearest instead"


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Codes on a grid, int32 [rows, columns] as stored."""

    grid: MatrixGrid
    codes: Tensor

    def values(self) -> Tensor:
        """What they decode to, float32 [rows, columns]."""
        return self.grid.values(self.codes)


def quantize(
    weight: Tensor,
    fmt: Format,
    *,
    hessian: Tensor,
    damping: float = 0.01,
    order: Order = "activation",
    rounds: int = 0,
    threads: int = 0,
) -> QuantizedTensor:
    """Quantize `weight` to minimise the output error on the calibration inputs.

    weight   [out, in] float32; not modified
    hessian  [in, in] float32, mean of x xᵀ over calibration tokens
    damping  share of the mean diagonal added to it, > 0; raised where it does not suffice
    order    "activation": columns by falling diag(hessian), grids fixed before; "groups": whole blocks in that
             order; "natural": as stored. In these two, the grid of a block is fitted to what its weights became.
    rounds   refinements of scales and codes in turn afterwards
    threads  0: as many as there are cores; never changes the codes
    Raises ShapeError, SchemeError, and FormatError for NaN or Inf by place. A Hessian that cannot be factored makes
    this rtn, and `fallback` of the result says so.
    """
    x = checked_weight(weight, fmt)
    h = checked_statistic("the Hessian", hessian, x.shape[1])
    factored = factor(h, order=order, block=fmt.block, damping=damping)
    if factored is None:
        return rtn.quantize(weight, fmt, importance=None, fallback=NOT_DEFINITE, threads=threads)
    return finished(fmt, weight, packed(x, fmt, factored, order=order, rounds=rounds, threads=threads), None)


def packed(
    weight: Tensor,
    fmt: Format,
    factored: Factor,
    *,
    order: Order,
    rounds: int = 0,
    target: Tensor | None = None,
    threads: int = 0,
) -> Tensor:
    """Packed rows of a checked weight, uint8 [rows, row_bytes]: what `solve` finds, a slab of rows at a time."""
    pieces = []
    for rows in slabs(weight, fmt):
        part = None if target is None else target[rows]
        solution = solve(weight[rows], fmt, factored, order=order, rounds=rounds, target=part, threads=threads)
        pieces.append(solution.grid.pack(solution.codes))
    return torch.cat(pieces)


def solve(
    weight: Tensor,
    fmt: Format,
    factored: Factor,
    *,
    order: Order,
    rounds: int = 0,
    target: Tensor | None = None,
    threads: int = 0,
) -> Solution:
    """Grid and codes of a checked weight.

    target  [rows, columns] what columns are rounded from while nothing has erred; None: the weight
    """
    importance = factored.hessian.diagonal().contiguous()
    if order == "activation" or fmt.block <= 1:
        grid = fitted(weight if target is None else target, fmt, importance, threads=threads)
        found = settled(weight, grid, factored, target=target, threads=threads)
    else:
        found = _refitted(weight, fmt, factored, importance, target=target, threads=threads)
    return Solution(*refined(weight, found.grid, found.codes, factored.hessian, rounds=rounds, threads=threads))


def settled(
    weight: Tensor, grid: MatrixGrid, factored: Factor, *, target: Tensor | None = None, threads: int = 0
) -> Solution:
    """Codes on a grid that is fixed."""
    order = factored.order
    points = grid.points(order)
    if points is None:
        return Solution(grid, _slow(weight, grid, factored, target))
    state = started(weight, order, target)
    settle(state, points, factored.matrix, 0, weight.shape[1], threads=threads)
    return Solution(grid, restored(state.codes, order, len(weight)))


def started(weight: Tensor, order: Tensor | None, target: Tensor | None = None) -> State:
    """Before the first rounding: targets are the weights, if no others are given, and errors are 0."""
    x = _in_order(weight, order)
    goal = x.clone() if target is None else _in_order(target, order)
    error = torch.zeros_like(x)
    return State(goal, x, error, error, torch.zeros_like(x, dtype=torch.uint8))


def _in_order(matrix: Tensor, order: Tensor | None) -> Tensor:
    columns = upright(matrix)
    return columns if order is None else columns[order]


def restored(codes: Tensor, order: Tensor | None, rows: int) -> Tensor:
    """Codes [columns in order, padded rows] as int32 [rows, columns as stored]."""
    if order is not None:
        codes = torch.empty_like(codes).index_copy_(0, order, codes)
    return codes[:, :rows].T.contiguous().to(torch.int32)


LAZY = 256  # columns after which all the rest hears of the errors, while blocks are fitted one by one


def _refitted(
    weight: Tensor, fmt: Format, factored: Factor, importance: Tensor, *, target: Tensor | None, threads: int
) -> Solution:
    """Fit the grid of each block to its targets when its turn comes; blocks stay whole in the order."""
    rows, columns = weight.shape
    width, size = fmt.block, fmt.block_bytes
    order = torch.arange(columns, device=weight.device) if factored.order is None else factored.order
    state = started(weight, factored.order, target)
    data = torch.zeros((rows, fmt.row_bytes(columns)), dtype=torch.uint8, device=weight.device)
    span = max(width, LAZY // width * width)
    for start in range(0, columns, span):
        stop = min(columns, start + span)
        for first in range(start, stop, width):
            inside = order[
                first : first + width
            ].argsort()  # brings the block's columns into the order they are stored in
            stored = order[first : first + width][inside]
            block = state.target[first : first + width][inside, :rows].T.contiguous()
            grid = fitted(block, fmt, importance[stored], threads=threads)
            number = int(stored[0]) // width
            data[:, number * size : (number + 1) * size] = grid.pack(torch.zeros_like(block, dtype=torch.int32))
            points = _block_points(grid, order[first : first + width] - stored[0], first, columns)
            settle(state, points, factored.matrix, first, first + width, stop, threads=threads)
        propagate(state, factored.matrix, start, stop, stop, threads=threads)
    grid, _ = MatrixGrid.unpacked(fmt, data, columns)
    return Solution(grid, restored(state.codes, factored.order, rows))


def _block_points(grid: MatrixGrid, order: Tensor, first: int, columns: int) -> Points:
    """Points of one block, for columns first … of a matrix."""
    points = grid.points(order)
    assert points is not None, "a format of blocks without a lattice"
    group = torch.zeros(columns, dtype=torch.int32, device=order.device)
    group[first : first + len(order)] = points.group
    return replace(points, group=group)


def _slow(weight: Tensor, grid: MatrixGrid, factored: Factor, target: Tensor | None) -> Tensor:
    """Codes on a grid without a lattice, column by column: floats, one grid over whole rows."""
    order = torch.arange(weight.shape[1], device=weight.device) if factored.order is None else factored.order
    targets = (weight if target is None else target)[:, order].T.contiguous()
    codes = torch.empty(weight.shape, dtype=torch.int32, device=weight.device)
    for k, j in enumerate(order.tolist()):
        column = grid.grid.round(targets[k], j)
        codes[:, j] = column
        error = weight[:, j] - grid.grid.value(column, j)
        targets[k + 1 :] += factored.matrix[k, k + 1 :, None] * error
    return codes
