"""A number format: which grid the numbers live on and how its codes are packed into bytes.

The grid is apart from the choice of points on it, so that every rounding method works with every format:
`fit` finds the side information of a block (scales, minima), the grid rounds and decodes single columns, `pack`
and `unpack` move between codes and the bytes that a container stores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Format", "Grid", "Lattice", "Rules", "Span"]

Span = Literal["block", "row", "tensor"]
"""How many weights share one set of scales: a fixed block of a row, a whole row, or the whole tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """What the codes of a grid mean, group of columns by group of columns: the arrays that fast loops run on.

    step    float32 [rows, groups]
    offset  float32 [rows, groups]
    zero    float32 [rows, groups], whole numbers
    width   columns per group; 0: all of the block
    levels  codes are 0 … levels - 1
    table   float32 [levels], None: the codes are evenly spaced
    Without a table code c means step·(c - zero) - offset, with one step·table[c]; both in this order of operations.
    """

    step: Tensor
    offset: Tensor
    zero: Tensor
    width: int
    levels: int
    table: Tensor | None = None


class Grid(Protocol):
    """The fitted side information of one block in each of `rows` rows: small tensors, never changed."""

    def round(self, column: Tensor, j: int) -> Tensor:
        """Nearest codes, int32 [rows], of column `j` of the block, float32 [rows]."""
        ...

    def value(self, codes: Tensor, j: int) -> Tensor:
        """What the codes of column `j`, [rows], decode to: float32 [rows]."""
        ...

    def round_all(self, block: Tensor) -> Tensor:
        """Nearest codes, int32 [rows, block], of a whole block, float32 [rows, block]."""
        ...

    def values(self, codes: Tensor) -> Tensor:
        """What the codes of a whole block decode to: float32 [rows, block]."""
        ...

    def lattice(self) -> Lattice | None:
        """The same grid as arrays; None where codes are neither evenly spaced nor entries of a small table."""
        ...


class Rules(Protocol):
    """How one family of formats fits, packs and moves whole matrices; `Format` hands every call on to it."""

    def fit(self, block: Tensor, importance: Tensor | None, search: str) -> Grid: ...  # noqa: D102 (see Format)

    def pack(self, grid: Any, codes: Tensor) -> Tensor: ...  # noqa: D102 (the grid that this family made)

    def unpack(self, data: Tensor, columns: int) -> tuple[Any, Tensor]: ...  # noqa: D102

    def encode(  # noqa: D102
        self, weight: Float32, *, importance: Float32 | None, search: str, threads: int
    ) -> Bytes: ...

    def decode(self, data: Bytes, columns: int, *, threads: int) -> Float32: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Format:
    """One row of the table of number formats.

    name             canonical name
    family           formats that share their rules: float, legacy, k, lookup, ternary, integer, …
    bits             bits of one code, without side information (1.6 for base-3 packing)
    block            weights that share one block of bytes; 0: a whole row
    block_bytes      bytes of one block; for block 0 the side information of a row, without its codes
    span             how many weights share scales
    layout           fields of a block (or row) in byte order, for people
    lowest, highest  smallest and largest value of a code, in `unit`
    step             smallest distance between two neighbouring codes, in `unit`
    unit             what lowest, highest and step are measured in: "1" (absolute) or the name of a scale
    largest          largest magnitude that can be stored at all, with the largest scale
    ggml_type        type number in a GGUF file, None: cannot stand in one
    containers       files that can hold it
    engines          engines that run it from one of those files
    fallback         format that takes over when the row length does not divide into blocks; None: holds any row
    uses_importance  whether an importance vector can change the codes
    rules            how the family fits, packs, encodes
    """

    name: str
    family: str
    bits: float
    block: int
    block_bytes: int
    span: Span
    layout: tuple[str, ...]
    lowest: float
    highest: float
    step: float
    unit: str
    largest: float
    ggml_type: int | None
    containers: tuple[str, ...]
    engines: tuple[str, ...]
    fallback: str | None
    uses_importance: bool
    rules: Rules = field(repr=False, compare=False)

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per weight, with scales; for whole-row formats the limit for long rows."""
        return self.block_bytes * 8 / self.block if self.block else float(self.bits)

    @property
    def bytes_per_parameter(self) -> float:
        """Memory per parameter in bytes."""
        return self.bits_per_weight / 8

    def holds(self, columns: int) -> bool:
        """Whether a row of `columns` weights divides into blocks."""
        return columns >= 0 and (self.block == 0 or columns % self.block == 0)

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` weights; ShapeError if the row does not divide into blocks."""
        if not self.holds(columns):
            other = f"; {self.fallback} takes its place" if self.fallback else ""
            raise ShapeError(f"{columns} columns do not divide into blocks of {self.block} ({self.name}){other}")
        if self.block == 0:
            return self.block_bytes + -(-columns * int(self.bits) // 8)
        return columns // self.block * self.block_bytes

    def fit(self, block: Tensor, importance: Tensor | None = None, search: str = "best") -> Grid:
        """Fit the grid of one block in every row.

        block       [rows, self.block] float32 (whole-row formats: any columns), on any device; not modified
        importance  [columns] float32 ≥ 0: weight of each column's squared error, None: no preference
        search      "best" (ours) or "ggml" (exactly llama.cpp's), where the format has a choice
        """
        width = self.block or int(block.shape[-1])
        if block.ndim != 2 or int(block.shape[1]) != width:
            raise ShapeError(f"{self.name} fits blocks [rows, {width}], got {tuple(block.shape)}")
        if importance is not None and tuple(importance.shape) != (width,):
            raise ShapeError(f"importance needs one value per column, [{width}], got {tuple(importance.shape)}")
        return self.rules.fit(block, importance, search)

    def pack(self, grid: Grid, codes: Tensor) -> Tensor:
        """Pack codes, [rows, block], and their grid into uint8 [rows, bytes], exactly as containers store them."""
        return self.rules.pack(grid, codes)

    def unpack(self, data: Tensor, columns: int | None = None) -> tuple[Grid, Tensor]:
        """Invert `pack`: the grid and the codes, int32 [rows, block], of one block in every row.

        columns  only for whole-row formats: how many codes a row has; None: as many as fit into the bytes
        """
        width = self.block
        if width == 0:
            width = columns if columns is not None else (int(data.shape[1]) - self.block_bytes) * 8 // int(self.bits)
        if data.ndim != 2 or int(data.shape[1]) != self.row_bytes(width):
            raise ShapeError(f"{self.name} unpacks [rows, {self.row_bytes(width)}] bytes, got {tuple(data.shape)}")
        grid, codes = self.rules.unpack(data, width)
        return grid, codes

    def encode(
        self, weight: Float32, *, importance: Float32 | None = None, search: str = "best", threads: int = 0
    ) -> Bytes:
        """Encode a matrix: float32 [rows, columns] to uint8 [rows, row_bytes].

        importance  [columns] float32 ≥ 0, None: no preference
        search      "best" (ours, the default) or "ggml" (exactly llama.cpp's)
        threads     0: as many as there are cores; the count never changes the bytes
        Raises ShapeError for a shape that does not fit, FormatError for NaN or Inf (naming the place) and
        SchemeError for a value beyond `largest`. A format that spans the tensor needs the whole tensor in one call.
        """
        if np.ndim(weight) == 2 and np.size(weight) == 0:
            return np.empty((np.shape(weight)[0], self.row_bytes(np.shape(weight)[1])), np.uint8)
        return self.rules.encode(weight, importance=importance, search=search, threads=threads)

    def decode(self, data: Bytes, columns: int, *, threads: int = 0) -> Float32:
        """Decode rows: uint8 [rows, row_bytes] to float32 [rows, columns]; ShapeError if the bytes do not fit."""
        size = self.row_bytes(columns)
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != size:
            raise ShapeError(f"{self.name}: {columns} columns take uint8 [rows, {size}], got {data.dtype} {data.shape}")
        if len(data) == 0 or columns == 0:
            return np.zeros((len(data), columns), np.float32)
        return self.rules.decode(data, columns, threads=threads)
