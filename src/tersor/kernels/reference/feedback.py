"""Error feedback: columns are rounded in order, and each one's error moves the targets of those still to come.

All matrices are column-major over the weights, [columns, rows]. matrix[k, j] is what an error of 1 in column k adds to
the target of column j. Every target gets the changes one after the other, in the order of the columns, product
and sum rounded once: native code gives the same bits whatever its blocks, tiles and threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Points", "State", "fused", "propagate", "round_column", "settle"]


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """The values that each column may take; `Lattice` of a whole matrix, column-major.

    step, offset, zero  float32 [groups, rows]; code c means step·(c - zero) - offset
    group               int32 [columns], which group a column is in
    levels              codes are 0 … levels - 1, at most 256
    table               float32 [levels]: code c means step·table[c]; None: evenly spaced
    """

    step: Tensor
    offset: Tensor
    zero: Tensor
    group: Tensor
    levels: int
    table: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Where a matrix stands; the arrays are written.

    target  float32 [columns, rows], what the next rounding of each weight should come close to
    weight  float32 [columns, rows], never written
    error   float32 [columns, rows], weight less value; 0 where nothing was rounded yet
    change  float32 [columns, rows], by how much the last rounding moved the error; may be `error` in a first pass
    codes   uint8 [columns, rows]
    """

    target: Tensor
    weight: Tensor
    error: Tensor
    change: Tensor
    codes: Tensor


def settle(state: State, points: Points, matrix: Tensor, first: int, last: int, until: int) -> None:  # noqa: PLR0917
    """Round columns first … last - 1 in order; the targets of all columns after each, up to `until`, are moved."""
    for j in range(first, last):
        codes, value = round_column(points, j, state.target[j])
        state.codes[j] = codes.to(torch.uint8)
        error = state.weight[j] - value
        moved = error - state.error[j]
        state.error[j] = error
        state.change[j] = moved
        later = slice(j + 1, until)
        state.target[later] = fused(matrix[j, later, None], moved, state.target[later])


def propagate(state: State, matrix: Tensor, first: int, last: int, start: int, until: int) -> None:  # noqa: PLR0917
    """Add the changes of columns first … last - 1 to the targets of columns start … until - 1."""
    for k in range(first, last):
        state.target[start:until] = fused(matrix[k, start:until, None], state.change[k], state.target[start:until])


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, float32, rounded once.

    The product of two floats is exact in float64. Its sum with a third is rounded to odd there, which leaves the
    second rounding right (Boldo and Melquiond 2008): where it is inexact and its last bit is 0, it moves by one unit
    towards what was lost.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    taken = total - product
    lost = (product - (total - taken)) + (addend - taken)
    bits = total.view(torch.int64)
    is_even = (lost != 0) & lost.isfinite() & (bits & 1 == 0)
    outward = torch.where((lost > 0) == (total > 0), 1, -1)
    return torch.where(is_even, bits + outward, bits).view(torch.float64).float()


def round_column(points: Points, j: int, target: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of column `j`, float32 [rows], and what they decode to."""
    group = points.group[j]
    step = points.step[group]
    if points.table is not None:
        return _entry(target, step, points.table)
    offset, zero = points.offset[group], points.zero[group]
    place = (target + offset) / step
    place = torch.where(step == 0, torch.zeros_like(place), place)
    place = torch.where(place.isnan(), torch.zeros_like(place), place)
    level = torch.minimum(torch.maximum(place, -zero), points.levels - 1 - zero).round()
    return level + zero, step * level - offset


def _entry(target: Tensor, step: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest entry, of equally near ones the first, and its value."""
    low, high = step * table.amin(), step * table.amax()
    x = torch.minimum(torch.maximum(target, torch.minimum(low, high)), torch.maximum(low, high))
    values = table[:, None] * step
    best = (values - x).abs().argmin(dim=0)
    return best, values.gather(0, best[None])[0]
