"""fp8_e4m3, fp8_e5m2: eight-bit floats under one float32 scale per row; nf4: normal quantiles under a block maximum.

Source: OCP 8-bit floating point (e4m3 "fn": no infinity, largest 448); Dettmers et al. 2023, arXiv:2305.14314 (nf4).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tersor.core.arrays import Bytes, Float32
from tersor.core.format import Format
from tersor.formats import blocks
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant
from tersor.kernels.reference.grids import FloatGrid, TableGrid
from tersor.kernels.reference.packing import from_bytes, to_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["FORMATS", "NORMAL_FLOATS", "EightBitRules", "NormalRules"]

NORMAL_FLOATS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 values of nf4; tests/formats/test_scaled.py derives them from the paper's construction."""

LARGEST = 2.0**126
TOPS = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
NORMAL_BLOCK = 64


@dataclass(frozen=True, slots=True)
class EightBitRules:
    """Rules of one eight-bit float: the largest magnitude of a row becomes the largest float."""

    name: str

    def fit(self, block: Tensor, importance: Tensor | None, search: str) -> FloatGrid:  # noqa: ARG002
        """One scale per row."""
        magnitude = block.abs().amax(dim=1)
        top = TOPS[self.name]
        return FloatGrid(self.name, blocks.usable_scale(magnitude / constant(top, magnitude)), top)

    def pack(self, grid: FloatGrid, codes: Tensor) -> Tensor:
        """Scale f32, then one byte per weight."""
        scale = grid.scale if grid.scale is not None else torch.ones(len(codes), device=codes.device)
        return torch.cat((to_bytes(scale, torch.float32), codes.to(torch.uint8)), dim=1)

    def unpack(self, data: Tensor, columns: int) -> tuple[FloatGrid, Tensor]:
        """Invert `pack`."""
        scale = from_bytes(data[:, :4], torch.float32)[:, 0]
        return FloatGrid(self.name, scale, TOPS[self.name]), data[:, 4 : 4 + columns].to(torch.int32)

    def encode(self, weight: Float32, *, importance: Float32 | None, search: str, threads: int) -> Bytes:  # noqa: ARG002
        """Encode a matrix."""
        return blocks.encode(self.name, self, weight, block=0, largest=LARGEST, importance=importance, search=search)

    def decode(self, data: Bytes, columns: int, *, threads: int) -> Float32:  # noqa: ARG002
        """Decode rows."""
        return blocks.decode(self, data, columns, block=0)


@dataclass(frozen=True, slots=True)
class NormalRules:
    """Rules of nf4: the largest magnitude of a block of 64 becomes ±1."""

    def fit(self, block: Tensor, importance: Tensor | None, search: str) -> TableGrid:  # noqa: ARG002
        """One scale per block."""
        return self._grid(blocks.usable_scale(block.abs().amax(dim=1)))

    def pack(self, grid: TableGrid, codes: Tensor) -> Tensor:
        """Scale f32, then two codes a byte, the first of them in the high nibble."""
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        return torch.cat((to_bytes(grid.d, torch.float32), pairs), dim=1)

    def unpack(self, data: Tensor, columns: int) -> tuple[TableGrid, Tensor]:  # noqa: ARG002
        """Invert `pack`."""
        pairs = data[:, 4:].to(torch.int32)
        codes = torch.stack((pairs >> 4, pairs & 15), dim=2).reshape(len(data), NORMAL_BLOCK)
        return self._grid(from_bytes(data[:, :4], torch.float32)[:, 0]), codes

    def encode(self, weight: Float32, *, importance: Float32 | None, search: str, threads: int) -> Bytes:  # noqa: ARG002
        """Encode a matrix."""
        return blocks.encode(
            "nf4", self, weight, block=NORMAL_BLOCK, largest=LARGEST, importance=importance, search=search
        )

    def decode(self, data: Bytes, columns: int, *, threads: int) -> Float32:  # noqa: ARG002
        """Decode rows."""
        return blocks.decode(self, data, columns, block=NORMAL_BLOCK)

    @staticmethod
    def _grid(scale: Tensor) -> TableGrid:
        return blocks.table_grid(scale, NORMAL_FLOATS, NORMAL_BLOCK)


def _eight_bit(name: str, step: float) -> Format:
    return Format(
        name=name,
        family="float",
        bits=8,
        block=0,
        block_bytes=4,
        span="row",
        layout=("scale f32", "codes row×8 bit"),
        lowest=-TOPS[name],
        highest=TOPS[name],
        step=step,
        unit="scale",
        largest=LARGEST,
        ggml_type=None,
        containers=(),
        engines=(),
        fallback=None,
        uses_importance=False,
        rules=EightBitRules(name),
    )


FORMATS = (
    _eight_bit("fp8_e4m3", 2.0**-9),
    _eight_bit("fp8_e5m2", 2.0**-16),
    Format(
        name="nf4",
        family="lookup",
        bits=4,
        block=NORMAL_BLOCK,
        block_bytes=4 + NORMAL_BLOCK // 2,
        span="block",
        layout=("absmax f32", "codes 64×4 bit"),
        lowest=-1,
        highest=1,
        step=min(b - a for a, b in pairwise(NORMAL_FLOATS)),
        unit="absmax",
        largest=LARGEST,
        ggml_type=None,
        containers=(),
        engines=(),
        fallback="f16",
        uses_importance=False,
        rules=NormalRules(),
    ),
)
