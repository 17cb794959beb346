"""Grids: the side information of one block per row, and how it rounds and decodes.

Codes are int32 and start at 0, exactly the integers that are stored. Fields are tensors over rows, [rows] or
[rows, groups]; a group is `width` neighbouring columns of the block. The order of operations in `values` is that of
llama.cpp's decoders, so that results are equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tersor.core.format import Lattice
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["AffineGrid", "FloatGrid", "TableGrid", "spread"]


@dataclass(frozen=True, eq=False)
class AffineGrid:
    """Code c means d·scales·(c - zero) - dmin·minima: the legacy, K and ternary formats.

    d, dmin         float32 [rows], scale of the block and of its minima
    scales, minima  int32 [rows, groups]
    zero            code that means 0 before the minimum is taken off
    levels          codes are 0 … levels - 1
    width           columns per group
    """

    d: Tensor
    scales: Tensor
    zero: int
    levels: int
    width: int
    dmin: Tensor
    minima: Tensor

    @cached_property
    def steps(self) -> Tensor:
        """Distance between codes, [rows, groups]."""
        return self.d[:, None] * self.scales

    @cached_property
    def offsets(self) -> Tensor:
        """What is taken off every value, [rows, groups]."""
        return self.dmin[:, None] * self.minima

    def round(self, column: Tensor, j: int) -> Tensor:
        """Nearest codes of column `j`: int32 [rows]."""
        group = j // self.width
        return self._round(column, self.steps[:, group], self.offsets[:, group])

    def value(self, codes: Tensor, j: int) -> Tensor:
        """Values of the codes of column `j`: float32 [rows]."""
        group = j // self.width
        return self.steps[:, group] * (codes - self.zero) - self.offsets[:, group]

    def round_all(self, block: Tensor) -> Tensor:
        """Nearest codes of a block: int32 [rows, block]."""
        return self._round(block, spread(self.steps, self.width), spread(self.offsets, self.width))

    def values(self, codes: Tensor) -> Tensor:
        """Values of the codes of a block: float32 [rows, block]."""
        return spread(self.steps, self.width) * (codes - self.zero) - spread(self.offsets, self.width)

    def lattice(self) -> Lattice:
        """The same grid as arrays."""
        zero = torch.full_like(self.steps, self.zero)
        return Lattice(self.steps, self.offsets, zero, self.width, self.levels)

    def _round(self, x: Tensor, step: Tensor, offset: Tensor) -> Tensor:
        place = (x + offset) / step  # infinite or NaN where the step is 0: every code means the same there
        place = torch.where(step == 0, torch.zeros_like(place), place).nan_to_num(nan=0.0)
        return (place.round().clamp(-self.zero, self.levels - 1 - self.zero) + self.zero).to(torch.int32)


@dataclass(frozen=True, eq=False)
class TableGrid:
    """Code c means d·scales·table[c]: iq4, mxfp4, nf4, binary.

    d       float32 [rows]
    scales  int32 [rows, groups]
    table   float32 [levels], the same for all
    width   columns per group
    """

    d: Tensor
    scales: Tensor
    table: Tensor
    width: int

    @cached_property
    def steps(self) -> Tensor:
        """What the table is multiplied with, [rows, groups]."""
        return self.d[:, None] * self.scales

    def round(self, column: Tensor, j: int) -> Tensor:
        """Nearest codes of column `j`, of equally near ones the smallest: int32 [rows]."""
        return self._round(column, self.steps[:, j // self.width])

    def value(self, codes: Tensor, j: int) -> Tensor:
        """Values of the codes of column `j`: float32 [rows]."""
        return self.steps[:, j // self.width] * self.table[codes.long()]

    def round_all(self, block: Tensor) -> Tensor:
        """Nearest codes of a block: int32 [rows, block]."""
        return self._round(block, spread(self.steps, self.width))

    def values(self, codes: Tensor) -> Tensor:
        """Values of the codes of a block: float32 [rows, block]."""
        return spread(self.steps, self.width) * self.table[codes.long()]

    def lattice(self) -> Lattice:
        """The same grid as arrays."""
        nothing = torch.zeros_like(self.steps)
        return Lattice(self.steps, nothing, nothing, self.width, len(self.table), self.table)

    def _round(self, x: Tensor, step: Tensor) -> Tensor:
        ends = torch.stack((step * self.table.amin(), step * self.table.amax()))
        x = x.clamp(ends.amin(0), ends.amax(0))  # far outside, every distance would round to the same
        best = torch.zeros_like(x, dtype=torch.int32)
        least = (step * self.table[0] - x).abs()
        for code in range(1, len(self.table)):
            error = (step * self.table[code] - x).abs()
            closer = error < least
            least = torch.where(closer, error, least)
            best = torch.where(closer, torch.full_like(best, code), best)
        return best


@dataclass(frozen=True, eq=False)
class FloatGrid:
    """Code c is the bit pattern of a float of `kind`; a value is scale times that float.

    kind    "f32", "f16", "bf16", "fp8_e4m3", "fp8_e5m2"
    scale   float32 [rows], None: 1
    largest  finite magnitudes beyond it saturate (only where there is a scale)
    """

    kind: str
    scale: Tensor | None = None
    largest: float = float("inf")

    def round(self, column: Tensor, j: int) -> Tensor:  # noqa: ARG002 (all columns are alike)
        """Bit patterns of the nearest floats (half to even), int32 [rows]."""
        return self._round(column, self.scale)

    def value(self, codes: Tensor, j: int) -> Tensor:  # noqa: ARG002
        """Values of the codes of a column: float32 [rows]."""
        return self._value(codes, self.scale)

    def round_all(self, block: Tensor) -> Tensor:
        """Bit patterns of the nearest floats of a block: int32 [rows, block]."""
        return self._round(block, None if self.scale is None else self.scale[:, None])

    def values(self, codes: Tensor) -> Tensor:
        """Values of the codes of a block: float32 [rows, block]."""
        return self._value(codes, None if self.scale is None else self.scale[:, None])

    def lattice(self) -> None:
        """Floats are neither evenly spaced nor few."""

    def _round(self, x: Tensor, scale: Tensor | None) -> Tensor:
        floats, integers, mask = _float_types(self.kind)
        scaled = x if scale is None else (x / scale).clamp(-self.largest, self.largest)
        return scaled.to(floats).contiguous().view(integers).to(torch.int32) & mask

    def _value(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        floats, integers, _ = _float_types(self.kind)
        values = codes.to(integers).contiguous().view(floats).to(torch.float32)
        return values if scale is None else values * scale


def _float_types(kind: str) -> tuple[torch.dtype, torch.dtype, int]:
    """The float type, the integer type of its size, and the mask that makes its bits a code."""
    return {
        "f32": (torch.float32, torch.int32, -1),
        "f16": (torch.float16, torch.int16, 0xFFFF),
        "bf16": (torch.bfloat16, torch.int16, 0xFFFF),
        "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8, 0xFF),
        "fp8_e5m2": (torch.float8_e5m2, torch.uint8, 0xFF),
    }[kind]


def spread(groups: Tensor, width: int) -> Tensor:
    """Repeat every group value over its columns: [rows, groups] to [rows, groups · width]."""
    return groups.repeat_interleave(width, dim=1)
