"""Error feedback over whole matrices: checks the arrays, then hands them to the native kernels or to the reference.

On the CPU results depend on nothing but the arguments. On other devices torch's matrix products carry changes from
block to block, and the last bits of targets are theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from tersor.core.errors import SchemeError, ShapeError
from tersor.kernels.codec import native
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference import blocked
from tersor.kernels.reference import feedback as definition
from tersor.kernels.reference.feedback import Points, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["TILE", "Points", "State", "propagate", "settle"]

TILE = 32
"""The native kernels take rows in multiples of this."""

MOST_LEVELS = 256


class Native(Protocol):
    """What the compiled module offers for feedback; arrays as numpy sees them."""

    def settle(self, *arguments: Any) -> None: ...
    def propagate(self, *arguments: Any) -> None: ...


class Torch(Protocol):
    """What both forms in torch offer: the one that defines every bit, and the one that is fast on a GPU."""

    def settle(self, state: State, points: Points, matrix: Tensor, first: int, last: int, until: int) -> None: ...  # noqa: PLR0917
    def propagate(self, state: State, matrix: Tensor, first: int, last: int, start: int, until: int) -> None: ...  # noqa: PLR0917


def settle(  # noqa: PLR0917 (a state, a grid, a matrix and a range of columns)
    state: State, points: Points, matrix: Tensor, first: int, last: int, until: int | None = None, *, threads: int = 0
) -> None:
    """Round columns first … last - 1 in order, moving the targets of all columns after each.

    state    see State; `target`, `error`, `change` and `codes` are written
    points   the grid
    matrix   float32 [columns, columns]: what an error of 1 in one column adds to the target of another
    until    targets from here on stay (see `propagate`), None: all columns are moved
    threads  0: as many as there are cores; never changes a bit
    """
    columns = len(state.target)
    until = columns if until is None else until
    _check(state, points, matrix, first, last, last, until)
    module = _native(state)
    if module is None:
        _definition(state).settle(state, points, matrix, first, last, until)
        return
    table = points.table if points.table is not None else points.step.new_empty(0)
    arrays = (state.target, state.weight, state.error, state.change, matrix, points.group)
    grid = (points.step, points.offset, points.zero, table)
    numpy = [array.detach().contiguous().numpy() for array in (*arrays, *grid)]
    module.settle(*numpy, points.levels, state.codes.numpy(), first, last, until, threads)


def propagate(  # noqa: PLR0917 (a state, a matrix and two ranges of columns)
    state: State, matrix: Tensor, first: int, last: int, start: int, until: int | None = None, *, threads: int = 0
) -> None:
    """Add the changes of columns first … last - 1 to the targets of columns start … until - 1."""
    until = len(state.target) if until is None else until
    _check(state, None, matrix, first, last, start, until)
    module = _native(state)
    if module is None:
        _definition(state).propagate(state, matrix, first, last, start, until)
        return
    module.propagate(
        state.target.numpy(), state.change.numpy(), matrix.contiguous().numpy(), first, last, start, until, threads
    )


def _definition(state: State) -> Torch:
    return definition if state.target.device.type == "cpu" else blocked


def _native(state: State) -> Native | None:
    if state.target.device.type != "cpu" or state.target.shape[1] % TILE:
        return None
    return cast("Native | None", native())


def _check(  # noqa: PLR0917 (as its callers)
    state: State, points: Points | None, matrix: Tensor, first: int, last: int, start: int, until: int
) -> None:
    shape = state.target.shape
    arrays = {
        "target": state.target,
        "weight": state.weight,
        "error": state.error,
        "change": state.change,
        "codes": state.codes,
    }
    for name, array in arrays.items():
        if array.shape != shape or not array.is_contiguous():
            raise ShapeError(f"{name} must be contiguous {tuple(shape)} like the targets, got {tuple(array.shape)}")
    columns, rows = shape
    if matrix.shape != (columns, columns):
        raise ShapeError(f"the matrix of {columns} columns must be [{columns}, {columns}], got {tuple(matrix.shape)}")
    if not (0 <= first <= last <= columns and 0 <= start <= until <= columns):
        raise ShapeError(f"columns {first} … {last} or {start} … {until} are not in order within {columns}")
    if points is None:
        return
    if points.levels > MOST_LEVELS:
        raise SchemeError(f"codes of {points.levels} levels do not fit into a byte")
    if points.step.shape[1] != rows or points.group.shape != (columns,):
        raise ShapeError(
            f"a grid for {columns} columns of {rows} rows, got {tuple(points.group.shape)}, {tuple(points.step.shape)}"
        )
