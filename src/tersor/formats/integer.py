"""Plain integer groups: int8, int4, int3, int2; symmetric or with a zero point; per tensor, row or group.

Names: int{8,4,3,2}[-tensor|-channel|-g{N}][-sym|-asym], by default per channel (row) and symmetric; "int4-g128"
is "int4-g128-sym". A value is (code - zero)·scale with an integer zero inside the codes, so that 0.0 is exact.
docs/explanation/number-formats.md derives it and says why round((x - zero_point) / scale) is wrong.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import SchemeError
from tersor.core.format import Format, Span
from tersor.formats import blocks
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant
from tersor.kernels.reference.packing import from_bytes, to_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["IntegerGrid", "IntegerRules", "integer_format"]

PATTERN = re.compile(
    r"int(?P<bits>[2348])(?:-(?P<span>tensor|channel|g(?P<group>[1-9][0-9]{0,8})))?(?:-(?P<kind>sym|asym))?"
)
LARGEST = 2.0**126  # the range of a group, and its ends decoded again, stay finite


@dataclass(frozen=True, eq=False)
class IntegerGrid:
    """Code c means (c - zero)·scale.

    scale   float32 [rows], at least 2^-126
    zero    int32 [rows], 0 … levels - 1
    levels  codes are 0 … levels - 1
    """

    scale: Tensor
    zero: Tensor
    levels: int

    def round(self, column: Tensor, j: int) -> Tensor:  # noqa: ARG002 (all columns are alike)
        """Nearest codes of a column: int32 [rows]."""
        return self._round(column, self.scale, self.zero)

    def value(self, codes: Tensor, j: int) -> Tensor:  # noqa: ARG002
        """Values of the codes of a column: float32 [rows]."""
        return (codes - self.zero) * self.scale

    def round_all(self, block: Tensor) -> Tensor:
        """Nearest codes of a block: int32 [rows, block]."""
        return self._round(block, self.scale[:, None], self.zero[:, None])

    def values(self, codes: Tensor) -> Tensor:
        """Values of the codes of a block: float32 [rows, block]."""
        return (codes - self.zero[:, None]) * self.scale[:, None]

    def _round(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return ((x / scale).round() + zero).clamp(0, self.levels - 1).to(torch.int32)


@dataclass(frozen=True)
class IntegerRules:
    """Rules of one integer format.

    group  columns that share a scale; 0: the row, or the whole tensor
    """

    name: str
    bits: int
    span: Span
    group: int
    symmetric: bool

    @cached_property
    def side_bytes(self) -> int:
        """Bytes of scale and zero point of a block."""
        return 4 if self.symmetric else 5

    def fit(self, block: Tensor, importance: Tensor | None, search: str) -> IntegerGrid:  # noqa: ARG002
        """Spread the codes over the range of every row, widened to contain 0.0."""
        low, high = block.amin(dim=1).clamp(max=0), block.amax(dim=1).clamp(min=0)
        if self.span == "tensor":
            low, high = low.amin().expand(len(block)), high.amax().expand(len(block))
        levels = 1 << self.bits
        if self.symmetric:
            half = levels // 2
            scale = blocks.usable_scale(torch.maximum(-low / half, high / constant(half - 1, high)))
            return IntegerGrid(scale, torch.full_like(scale, half, dtype=torch.int32), levels)
        top = constant(levels - 1, high)
        scale = blocks.usable_scale(high / top - low / top)
        zero = (-low / scale).round().clamp(0, levels - 1).to(torch.int32)
        return IntegerGrid(scale, zero, levels)

    def pack(self, grid: IntegerGrid, codes: Tensor) -> Tensor:
        """scale f32, zero point u8 (asymmetric only), codes as one stream of bits from the low end."""
        parts = [to_bytes(grid.scale, torch.float32)]
        if not self.symmetric:
            parts.append(to_bytes(grid.zero, torch.uint8))
        return torch.cat([*parts, pack_stream(codes, self.bits)], dim=1)

    def unpack(self, data: Tensor, columns: int) -> tuple[IntegerGrid, Tensor]:
        """Invert `pack`."""
        scale = from_bytes(data[:, :4], torch.float32)[:, 0]
        levels = 1 << self.bits
        zero = torch.full_like(scale, levels // 2) if self.symmetric else data[:, 4]
        codes = unpack_stream(data[:, self.side_bytes :], self.bits, columns)
        return IntegerGrid(scale, zero.to(torch.int32), levels), codes

    def encode(self, weight: Float32, *, importance: Float32 | None, search: str, threads: int) -> Bytes:  # noqa: ARG002
        """Encode a matrix (the whole tensor, if the scale spans it)."""
        return blocks.encode(
            self.name, self, weight, block=self.group, largest=LARGEST, importance=importance, search=search
        )

    def decode(self, data: Bytes, columns: int, *, threads: int) -> Float32:  # noqa: ARG002
        """Decode rows."""
        return blocks.decode(self, data, columns, block=self.group)


def pack_stream(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, n] of `bits` bits as one little-endian stream of bits: uint8 [rows, ⌈n·bits/8⌉]."""
    rows = len(codes)
    positions = torch.arange(bits, device=codes.device, dtype=torch.int32)
    stream = ((codes[:, :, None] >> positions) & 1).reshape(rows, -1)
    padded = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8)).reshape(rows, -1, 8)
    weights = 1 << torch.arange(8, device=codes.device, dtype=torch.int32)
    return (padded * weights).sum(dim=2).to(torch.uint8)


def unpack_stream(data: Tensor, bits: int, count: int) -> Tensor:
    """Invert `pack_stream`: int32 [rows, count]."""
    positions = torch.arange(8, device=data.device, dtype=torch.int32)
    stream = ((data.to(torch.int32)[:, :, None] >> positions) & 1).reshape(len(data), -1)
    digits = stream[:, : count * bits].reshape(len(data), count, bits)
    weights = 1 << torch.arange(bits, device=data.device, dtype=torch.int32)
    return (digits * weights).sum(dim=2).to(torch.int32)


def integer_format(name: str) -> Format:
    """The integer format that `name` spells, with its canonical name; SchemeError if it spells none."""
    match = PATTERN.fullmatch(name)
    if match is None:
        raise SchemeError(
            f"{name!r} is no integer format: write int8, int4, int3 or int2, then -tensor, -channel or -g128 "
            "(any group size), then -sym or -asym"
        )
    bits, group = int(match["bits"]), int(match["group"] or 0)
    symmetric = match["kind"] != "asym"
    where = match["span"] or "channel"
    span: Span = "block" if group else "tensor" if where == "tensor" else "row"
    kind = "sym" if symmetric else "asym"
    rules = IntegerRules(f"int{bits}-{where}-{kind}", bits, span, group, symmetric)
    zero = 1 << (bits - 1) if symmetric else 0
    side = ("scale f32",) if symmetric else ("scale f32", "zero u8")
    return Format(
        name=rules.name,
        family="integer",
        bits=bits,
        block=group,
        block_bytes=rules.side_bytes + (math.ceil(group * bits / 8) if group else 0),
        span=span,
        layout=(*side, f"codes {group or 'row'}×{bits} bit"),
        lowest=-zero,
        highest=(1 << bits) - 1 - zero,
        step=1,
        unit="scale" if symmetric else "scale, from minus the zero point",
        largest=LARGEST,
        ggml_type=None,
        containers=(),
        engines=(),
        fallback=f"int{bits}-channel-{kind}" if group else None,
        uses_importance=False,
        rules=rules,
    )
