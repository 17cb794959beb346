"""The grid of a whole matrix, for any format: fitted, seen as arrays, packed. What is stored is the only truth.

Grids pass through the bytes that a container stores: scales are therefore exactly those that will be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.core.format import Format, Grid, Lattice
from tersor.core.tensor import QuantizedTensor
from tersor.kernels.feedback import TILE, Points
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["MatrixGrid", "checked_weight", "encoded", "finished", "held", "slabs", "to_array", "upright"]

SLAB = 1 << 23
"""Weights of a slab."""
SLAB_AWAY = 1 << 28
"""The same on a GPU, where what is dear is not memory but another pass over the columns."""


@dataclass(frozen=True, eq=False)
class MatrixGrid:
    """Fitted grids of all blocks of a matrix.

    format   the number format
    rows     rows of the matrix
    columns  columns of the matrix
    grid     one grid over [rows · blocks of a row], row after row
    """

    format: Format
    rows: int
    columns: int
    grid: Grid

    @classmethod
    def unpacked(cls, fmt: Format, data: Tensor, columns: int) -> tuple[MatrixGrid, Tensor]:
        """The grid and the codes, int32 [rows, columns], of packed rows, uint8 [rows, row_bytes]."""
        width = fmt.block or columns
        size = fmt.row_bytes(width)
        grid, codes = fmt.unpack(data.reshape(-1, size), width)
        return cls(fmt, len(data), columns, grid), codes.reshape(len(data), columns)

    @property
    def width(self) -> int:
        """Columns of one block."""
        return self.format.block or self.columns

    @cached_property
    def lattice(self) -> Lattice | None:
        """The grid as arrays over [rows · blocks]."""
        return self.grid.lattice()

    def pack(self, codes: Tensor) -> Tensor:
        """Bytes of the matrix, uint8 [rows, row_bytes], from its codes, int [rows, columns]."""
        blocks = codes.to(torch.int32).reshape(-1, self.width)
        return self.format.pack(self.grid, blocks).reshape(self.rows, -1)

    def round(self, weight: Tensor) -> Tensor:
        """Nearest codes, int32 [rows, columns]."""
        return self.grid.round_all(weight.reshape(-1, self.width)).reshape(self.rows, self.columns)

    def values(self, codes: Tensor) -> Tensor:
        """What codes decode to, float32 [rows, columns]."""
        return self.grid.values(codes.reshape(-1, self.width)).reshape(self.rows, self.columns)

    def points(self, order: Tensor | None = None) -> Points | None:
        """The grid for feedback, rows padded to whole tiles; None if the format has no lattice."""
        lattice = self.lattice
        if lattice is None:
            return None
        width = lattice.width or self.width
        group = torch.arange(self.columns, device=lattice.step.device) // width
        if order is not None:
            group = group[order]
        step, offset, zero = (upright(x.reshape(self.rows, -1)) for x in (lattice.step, lattice.offset, lattice.zero))
        return Points(step, offset, zero, group.to(torch.int32).contiguous(), lattice.levels, lattice.table)


def upright(matrix: Tensor) -> Tensor:
    """[rows, n] as [n, rows], contiguous, the rows filled up with zeros to whole tiles."""
    rows, columns = matrix.shape
    out = matrix.new_zeros((columns, -(-rows // TILE) * TILE))
    out[:, :rows] = matrix.T
    return out


def slabs(weight: Tensor, fmt: Format) -> Iterator[slice]:
    """Rows that are worked on together: enough for all threads, few enough for memory. They change no result."""
    rows, columns = weight.shape
    size = SLAB if weight.device.type == "cpu" else SLAB_AWAY
    step = rows if fmt.span == "tensor" else max(TILE, size // columns // TILE * TILE)
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


def checked_weight(weight: Tensor, fmt: Format) -> Tensor:
    """The weight as contiguous float32 [rows, columns], or the error that says where and why it cannot be encoded."""
    if weight.ndim != 2:
        raise ShapeError(f"methods quantize a matrix [out, in], got shape {tuple(weight.shape)}")
    if not weight.numel():
        raise ShapeError(f"a matrix of shape {tuple(weight.shape)} has no weights to quantize")
    fmt.row_bytes(int(weight.shape[1]))
    x = weight.detach().to(torch.float32).contiguous()
    bad = ~(x.abs() <= fmt.largest)
    if bool(bad.any()):
        row, column = map(int, bad.nonzero()[0])
        value = float(x[row, column])
        if not np.isfinite(value):
            raise FormatError(
                f"the weight at row {row}, column {column} is {value}: no format stores it, mend the source"
            )
        raise SchemeError(
            f"{fmt.name} stores magnitudes up to {fmt.largest:.4g}, "
            f"but row {row}, column {column} is {value:.4g}: use a wider format"
        )
    return x


def held(target: Tensor, fmt: Format) -> Tensor:
    """What a correction made of a weight, cut off at what the format stores."""
    return target.clamp(-fmt.largest, fmt.largest) if np.isfinite(fmt.largest) else target


def to_array(values: Tensor) -> Float32:
    """Float32 on the CPU, as numpy sees it."""
    array: Float32 = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return array


def encoded(
    weight: Tensor, fmt: Format, *, importance: Tensor | None = None, search: str = "best", threads: int = 0
) -> Tensor:
    """Packed rows, uint8 [rows, row_bytes] on the weight's device, by the format's own search."""
    shares = None if importance is None else to_array(importance)
    data = fmt.encode(to_array(weight), importance=shares, search=search, threads=threads)
    return torch.from_numpy(data).to(weight.device)


def finished(fmt: Format, weight: Tensor, data: Tensor, fallback: str | None) -> QuantizedTensor:
    """The result of a method: packed rows, with the shape of the weight."""
    return QuantizedTensor(fmt, tuple(weight.shape), data.cpu().numpy(), fallback)
