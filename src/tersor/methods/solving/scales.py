"""The scales of a whole matrix, apart from its codes: what may move while codes stay, and in which steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tersor.core.format import Format
from tersor.formats.integer import IntegerGrid
from tersor.formats.micro import MicroRules
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.grids import AffineGrid, TableGrid
from tersor.methods.solving.matrix import MatrixGrid

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["Scales", "stored_scale"]

MULTIPLES = {
    "q2_k": (0, 15),
    "q3_k": (-32, 31),
    "q4_k": (0, 63),
    "q5_k": (0, 63),
    "q6_k": (-128, 127),
    "iq4_xs": (-32, 31),
}
"""Smallest and largest whole multiple of the block's scale (and minimum) that a group may have."""

PAIRED = ("q4_1", "q5_1", "q2_k", "q4_k", "q5_k")  # formats with a minimum
FREE = ("q4_0", "q5_0", "q8_0", "iq4_nl", "nf4", "tq1_0", "tq2_0", "binary", *PAIRED, *MULTIPLES)
LARGEST_HALF = 65504.0
TINIEST = 2.0**-126


@dataclass(eq=False)
class Scales:
    """Scales that may be written: a value is d · multiple · level - dmin · minimum.

    source     the grid they come from
    d, dmin    float32 [rows, blocks]
    multiples  whole numbers as float32 [rows, groups of a row]
    minima     the same, None: the format has no minimum
    limits     smallest and largest multiple and minimum, None: they are fixed
    """

    source: MatrixGrid
    d: Tensor
    dmin: Tensor
    multiples: Tensor
    minima: Tensor | None
    limits: tuple[int, int] | None

    @classmethod
    def of(cls, grid: MatrixGrid) -> Scales | None:
        """The scales of a grid, None where they are not free to move."""
        inner: Any = grid.grid
        shape = (grid.rows, -1)
        name = grid.format.name
        is_free = name in FREE or isinstance(grid.format.rules, MicroRules)
        if isinstance(inner, IntegerGrid):
            if grid.format.span == "tensor":
                return None
            d = inner.scale.reshape(shape).clone()
            return cls(grid, d, torch.zeros_like(d), torch.ones_like(d), None, None)
        if not isinstance(inner, AffineGrid | TableGrid) or not is_free:
            return None
        d = inner.d.reshape(shape).clone()
        multiples = inner.scales.to(torch.float32).reshape(shape).clone()
        minima = None
        dmin = torch.zeros_like(d)
        if isinstance(inner, AffineGrid) and name in PAIRED:
            minima, dmin = inner.minima.to(torch.float32).reshape(shape).clone(), inner.dmin.reshape(shape).clone()
        return cls(grid, d, dmin, multiples, minima, MULTIPLES.get(name))

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.source.width

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.multiples.shape[1] // self.d.shape[1]

    @property
    def group_width(self) -> int:
        """Columns of a group."""
        return self.width // self.groups

    def levels(self, codes: Tensor) -> Tensor:
        """What codes int32 [rows, columns] mean before they are scaled, float32 [columns, rows]."""
        lattice = self.source.lattice
        assert lattice is not None, "scales without a lattice"
        blocks = codes.reshape(-1, self.width)
        if lattice.table is not None:
            level = lattice.table[blocks.long()]
        else:
            level = blocks - lattice.zero.repeat_interleave(lattice.width or self.width, dim=1)
        return level.reshape(codes.shape).T.contiguous()

    def spread(self, multiples: Tensor, block: int) -> Tensor:
        """Multiples of the groups of one block over its columns, [width, rows]."""
        part = multiples[:, block * self.groups : (block + 1) * self.groups]
        return part.T.repeat_interleave(self.group_width, dim=0)

    def stored(self, new: Tensor, old: Tensor) -> Tensor:
        """Scales as the format stores them; the old ones where the new cannot be stored."""
        return stored_scale(self.source.format, new, old)

    def grid(self) -> Any:
        """The grid with these scales."""
        inner: Any = self.source.grid
        if isinstance(inner, IntegerGrid):
            return replace(inner, scale=self.d.reshape(-1))
        blocks = len(inner.d)
        multiples = self.multiples.to(torch.int32).reshape(blocks, -1)
        if self.minima is None:
            return replace(inner, d=self.d.reshape(-1), scales=multiples)
        minima = self.minima.to(torch.int32).reshape(blocks, -1)
        return replace(inner, d=self.d.reshape(-1), scales=multiples, dmin=self.dmin.reshape(-1), minima=minima)


def stored_scale(fmt: Format, new: Tensor, old: Tensor) -> Tensor:
    """Scales of a format as it stores them; the old ones where the new cannot be stored."""
    if fmt.family == "integer":
        kind = {"f16": torch.float16, "bf16": torch.bfloat16}.get(fmt.name.rsplit("-", 1)[-1], torch.float32)
        rounded = new.to(kind).to(torch.float32)
        return torch.where((rounded >= TINIEST) & (rounded <= LARGEST_HALF), rounded, old)
    if isinstance(fmt.rules, MicroRules):
        return torch.where(new > 0, fmt.rules.stored(new), old)
    rounded = new if fmt.name == "nf4" else new.to(torch.float16).to(torch.float32)
    return torch.where(rounded.abs() <= LARGEST_HALF, rounded, old)
