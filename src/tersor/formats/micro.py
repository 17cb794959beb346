"""nvfp4: four-bit floats (e2m1), every 16 of them under an eight-bit float (e4m3), a whole tensor under one number.

Source: NVIDIA's NVFP4 as compressed-tensors stores it: a value is code · scale / global scale.
Differs: the global scale is the same for every tensor, so that rows can be encoded before all are seen, and scales are
never written below the smallest normal e4m3 (docs/decisions/0015-nvfp4-constant-global-scale.md). The scale of a block
is searched for, not derived from its maximum alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.formats import blocks
from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant, sum_in_order
from tersor.kernels.reference.grids import TableGrid
from tersor.kernels.reference.packing import from_bytes, pack_fields, to_bytes, unpack_fields

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "FORMATS",
    "GLOBAL_SCALE",
    "GLOBAL_SCALES",
    "MICRO_BLOCK",
    "PREFIX",
    "MicroRules",
    "micro_format",
    "micro_named",
]

LEVELS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
"""What the codes mean: bit 3 is the sign."""
TOP = 6.0
MICRO_BLOCK = 16
BYTES = 9  # of a block
GLOBAL_SCALE = 2.0**8
"""Of every tensor in `nvfp4`."""
GLOBAL_SCALES = (2.0**-100, 2.0**100)
"""What other tensors may have: beyond, quotients of scales would leave the normal numbers of float32."""
PREFIX = "nvfp4-scale"

LOWEST_CODE, HIGHEST_CODE = 0x08, 0x7E  # 2^-6, the smallest normal e4m3, and 448: the scales that are written
HIGHEST = 448.0
MOVES = (0, *range(-3, 0), *range(1, 7))
"""Scales tried, as steps of e4m3 from the one that makes the largest magnitude 6; five steps up it becomes about 4."""
AT_ONCE = 1 << 12  # blocks searched together, while they stay in the cache; changes no result


@dataclass(frozen=True)
class MicroRules:
    """Rules of nvfp4 under one global scale, a float32 number: a block's scale is e4m3 / global_scale."""

    global_scale: float = GLOBAL_SCALE

    @cached_property
    def name(self) -> str:
        """Name of the format: nvfp4, or which other global scale it has."""
        return "nvfp4" if self.global_scale == GLOBAL_SCALE else f"{PREFIX}{np.float32(self.global_scale)!s}"

    @cached_property
    def largest(self) -> float:
        """Largest magnitude that the largest scale reaches."""
        return TOP * HIGHEST / self.global_scale

    def fit(self, block: Tensor, importance: Tensor | None, search: str) -> TableGrid:
        """One scale per block; "ggml" makes the largest magnitude 6, "best" errs least of some around that.

        importance  [columns], or [blocks of a row, columns]
        """
        top = block.abs().amax(dim=1)
        plain = self._codes(top / constant(TOP, top))
        if search != "best":
            return self._grid(self._scales(plain))
        shares = None if importance is None else importance.reshape(-1, MICRO_BLOCK).T
        period = 1 if shares is None else shares.shape[1]
        step = max(1, AT_ONCE // period) * period
        found = []
        for start in range(0, len(block), step):
            x = block[start : start + step].abs().T.contiguous()
            weights = None if shares is None else shares.repeat(1, x.shape[1] // period)
            found.append(self._searched(x, weights, plain[start : start + step]))
        return self._grid(self._scales(torch.cat(found) if found else plain))

    def stored(self, wanted: Tensor) -> Tensor:
        """Scales float32 > 0 as the format writes them."""
        return self._scales(self._codes(wanted))

    def pack(self, grid: TableGrid, codes: Tensor) -> Tensor:
        """Scale e4m3, then two neighbours a byte, the first in the low nibble."""
        scale = (grid.d * self.global_scale).to(torch.float8_e4m3fn).view(torch.uint8)
        return torch.cat((to_bytes(scale, torch.uint8), pack_fields(codes, 4, 1)), dim=1)

    def unpack(self, data: Tensor, columns: int) -> tuple[TableGrid, Tensor]:  # noqa: ARG002
        """Invert `pack`."""
        return self._grid(self._scales(from_bytes(data[:, :1], torch.uint8)[:, 0])), unpack_fields(data[:, 1:], 4, 1)

    def encode(self, weight: Float32, *, importance: Float32 | None, search: str, threads: int) -> Bytes:  # noqa: ARG002
        """Encode a matrix."""
        return blocks.encode(
            self.name, self, weight, block=MICRO_BLOCK, largest=self.largest, importance=importance, search=search
        )

    def decode(self, data: Bytes, columns: int, *, threads: int) -> Float32:  # noqa: ARG002
        """Decode rows."""
        return blocks.decode(self, data, columns, block=MICRO_BLOCK)

    def _codes(self, wanted: Tensor) -> Tensor:
        """Bits of the nearest scales that are written, int32."""
        near = (wanted * self.global_scale).clamp(max=HIGHEST).to(torch.float8_e4m3fn).view(torch.uint8)
        return near.to(torch.int32).clamp(LOWEST_CODE, HIGHEST_CODE)

    def _scales(self, codes: Tensor) -> Tensor:
        """Scales float32 of their bits, divided as the library does."""
        stored = codes.to(torch.uint8).contiguous().view(torch.float8_e4m3fn).to(torch.float32)
        return stored / constant(self.global_scale, stored)

    def _searched(self, x: Tensor, weights: Tensor | None, plain: Tensor) -> Tensor:
        """Bits of the scales with the least squared error; x, weights [16, blocks], x ≥ 0, plain int32 [blocks]."""
        best, least = plain, torch.zeros_like(x[0])
        for move in MOVES:
            codes = (plain + move).clamp(LOWEST_CODE, HIGHEST_CODE)
            scale = self._scales(codes)
            lost = (_nearest(x / scale) * scale - x).square_()
            error = sum_in_order(lost if weights is None else lost.mul_(weights))
            better = error < least if move else torch.ones_like(error, dtype=torch.bool)
            best, least = torch.where(better, codes, best), torch.where(better, error, least)
        return best

    @staticmethod
    def _grid(scale: Tensor) -> TableGrid:
        return blocks.table_grid(scale, LEVELS, MICRO_BLOCK)


def _nearest(x: Tensor) -> Tensor:
    """The nearest magnitude of e2m1 to numbers ≥ 0."""
    fine = torch.where(x < 2, (x * 2).round_() / 2, x.round())
    return torch.where(x < 4, fine, (x / 2).round_() * 2).clamp_(max=TOP)


@lru_cache(maxsize=4096)
def micro_format(global_scale: float) -> Format:
    """The format of a tensor with this global scale, rounded to float32; SchemeError for one that cannot be used."""
    if not GLOBAL_SCALES[0] <= global_scale <= GLOBAL_SCALES[1]:
        raise SchemeError(f"a global scale of nvfp4 is a number from 2^-100 to 2^100, not {global_scale:g}")
    rules = MicroRules(float(np.float32(global_scale)))
    return Format(
        name=rules.name,
        family="lookup",
        bits=4,
        block=MICRO_BLOCK,
        block_bytes=BYTES,
        span="block",
        layout=("scale e4m3", f"codes {MICRO_BLOCK}×4 bit"),
        lowest=-TOP,
        highest=TOP,
        step=0.5,
        unit=f"scale / {rules.global_scale:g}",
        largest=rules.largest,
        ggml_type=None,
        containers=(),
        engines=(),
        fallback="f16",
        uses_importance=True,
        rules=rules,
    )


def micro_named(name: str) -> Format:
    """The format that `nvfp4-scaleNUMBER` names; SchemeError if it names none."""
    try:
        global_scale = float(name.removeprefix(PREFIX))
    except ValueError:
        raise SchemeError(f"{name!r} is no number format: write nvfp4, or nvfp4-scale and a number") from None
    return micro_format(global_scale)


FORMATS = (micro_format(GLOBAL_SCALE),)
