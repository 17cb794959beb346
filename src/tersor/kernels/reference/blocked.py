"""Error feedback for devices on which every operation costs a call: few operations on whole blocks of columns.

What feedback.py defines, but for the order of sums: changes reach columns beyond their block of 128 by one product of
matrices, and within it with one rounding more. On a GPU time is spent on calls, nine for each column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.feedback import Points, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["BLOCK", "propagate", "settle"]

BLOCK = 128
"""Columns whose changes reach the rest by one product of matrices."""


def settle(state: State, points: Points, matrix: Tensor, first: int, last: int, until: int) -> None:  # noqa: PLR0917
    """Round columns first … last - 1 in order; the targets of all columns after each, up to `until`, are moved."""
    for start in range(first, last, BLOCK):
        stop = min(last, start + BLOCK)
        _settle_block(state, _points_of(points, start, stop), matrix[start:stop, start:stop], start)
        propagate(state, matrix, start, stop, stop, until)


def propagate(state: State, matrix: Tensor, first: int, last: int, start: int, until: int) -> None:  # noqa: PLR0917
    """Add the changes of columns first … last - 1 to the targets of columns start … until - 1."""
    if start < until:
        state.target[start:until].addmm_(matrix[first:last, start:until].T, state.change[first:last])


def _settle_block(state: State, points: _Rounding, near: Tensor, start: int) -> None:
    block = slice(start, start + len(near))
    target, weight, before = state.target[block], state.weight[block], state.error[block]
    codes, values, moved = torch.empty_like(target), torch.empty_like(target), torch.empty_like(target)
    for j in range(len(near)):
        points.round(j, target[j], codes[j], values[j])
        torch.sub(weight[j], values[j], out=moved[j]).sub_(before[j])
        target[j + 1 :].addcmul_(near[j, j + 1 :, None], moved[j])
    state.error[block] = weight - values
    state.change[block] = moved  # the same array as the errors in a first pass, where nothing had erred before
    state.codes[block] = points.stored(codes)


class _Rounding(Protocol):
    """The points of one block of columns, spread over its columns."""

    def round(self, j: int, target: Tensor, code: Tensor, value: Tensor) -> None:
        """Write the nearest code of column `j`, and what it decodes to, both float32 [rows]."""
        ...

    def stored(self, codes: Tensor) -> Tensor:
        """What was written as codes, as it is stored."""
        ...


def _points_of(points: Points, start: int, stop: int) -> _Rounding:
    group = points.group[start:stop].long()
    step = points.step[group]
    if points.table is not None:
        low, high = step * points.table.amin(), step * points.table.amax()
        return _Table(step, points.table[:, None], torch.minimum(low, high), torch.maximum(low, high))
    zero = points.zero[group]
    whole = torch.where(step == 0, torch.inf, step)  # a step of zero has one level, whatever the target
    return _Even(step, whole, points.offset[group], zero, -zero, points.levels - 1 - zero)


@dataclass(frozen=True, slots=True, eq=False)
class _Even:
    """Evenly spaced: step·level - offset; all [columns, rows]."""

    step: Tensor
    divisor: Tensor
    offset: Tensor
    zero: Tensor
    low: Tensor
    high: Tensor

    def round(self, j: int, target: Tensor, code: Tensor, value: Tensor) -> None:
        torch.add(target, self.offset[j], out=code).div_(self.divisor[j]).nan_to_num_(0)
        code.clamp_(self.low[j], self.high[j]).round_()
        torch.mul(code, self.step[j], out=value).sub_(self.offset[j])

    def stored(self, codes: Tensor) -> Tensor:
        return codes.add_(self.zero).to(torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Multiples of the step that a table lists, [entries, 1]; targets are first brought between low and high."""

    step: Tensor
    table: Tensor
    low: Tensor
    high: Tensor

    def round(self, j: int, target: Tensor, code: Tensor, value: Tensor) -> None:
        inside = target.clamp(self.low[j], self.high[j])
        entry = (self.table * self.step[j]).sub_(inside).abs_().argmin(dim=0)
        code.copy_(entry)
        torch.mul(self.table[:, 0][entry], self.step[j], out=value)

    def stored(self, codes: Tensor) -> Tensor:
        return codes.to(torch.uint8)
