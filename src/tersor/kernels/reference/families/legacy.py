"""q8_0, q4_0, q4_1, q5_0, q5_1: 32 weights under one binary16 scale, the `_1` kinds with a minimum.

Source: facts of ggml's block layouts and encoders; bit-identical to them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import (
    constant,
    divided,
    extreme,
    half,
    largest_magnitude,
    rounded_away,
    truncated,
)
from tersor.kernels.reference.grids import AffineGrid
from tersor.kernels.reference.kernel import Blocks, Kernel
from tersor.kernels.reference.packing import from_bytes, pack_fields, to_bytes, unpack_fields
from tersor.kernels.reference.search import Steps, search_affine, search_symmetric

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["KERNELS", "WIDTH", "affine_grid", "symmetric_grid"]

WIDTH = 32
IMPORTANCE_STEPS = Steps(-0.9, 0.05, 36)


def symmetric_grid(d: Tensor, bits: int) -> AffineGrid:
    """Grid of blocks with one scale, float32 [blocks], rounded as it is stored."""
    ones = torch.ones((len(d), 1), dtype=torch.int32, device=d.device)
    zeros = torch.zeros_like(ones)
    return AffineGrid(half(d), ones, 1 << (bits - 1), 1 << bits, WIDTH, torch.zeros_like(d), zeros)


def affine_grid(d: Tensor, m: Tensor, bits: int) -> AffineGrid:
    """`m` is the smallest value itself, d·c + m."""
    ones = torch.ones((len(d), 1), dtype=torch.int32, device=d.device)
    return AffineGrid(half(d), ones, 0, 1 << bits, WIDTH, -half(m), ones)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d != 0, divided(1, d), torch.zeros_like(d))


def search_eight(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """q8_0: the largest magnitude becomes ±127."""
    magnitude, _ = largest_magnitude(blocks.x)
    d = magnitude / constant(127, magnitude)
    codes = rounded_away(blocks.x * _inverse(d)) + 128
    return symmetric_grid(d, 8), codes.T


def search_signed(blocks: Blocks, *, bits: int) -> tuple[AffineGrid, Tensor]:
    """q4_0, q5_0: the value of largest magnitude becomes the lowest code, or a search with importance."""
    levels = 1 << (bits - 1)
    if blocks.importance is not None:
        d, codes = search_symmetric(blocks.x, blocks.row_weights(), levels)
        return symmetric_grid(d, bits), codes.T
    _, signed = largest_magnitude(blocks.x)
    d = signed / constant(-levels, signed)
    codes = truncated(blocks.x * _inverse(d) + (levels + 0.5)).clamp(max=2 * levels - 1)
    return symmetric_grid(d, bits), codes.T


def search_ranged(blocks: Blocks, *, bits: int) -> tuple[AffineGrid, Tensor]:
    """q4_1, q5_1: smallest and largest value are the ends, or a search with importance."""
    top = (1 << bits) - 1
    if blocks.importance is not None:
        d, minimum, codes = search_affine(blocks.x, blocks.row_weights(), top, IMPORTANCE_STEPS)
        return affine_grid(d, -minimum, bits), codes.T
    low, high = extreme(blocks.x)
    d = (high - low) / constant(top, low)
    codes = truncated((blocks.x - low) * _inverse(d) + 0.5).clamp(max=top)
    return affine_grid(d, low, bits), codes.T


def pack_nibbles(grid: AffineGrid, codes: Tensor) -> Tensor:
    """[d, m,] the fifth bits of five-bit codes, 16 bytes of low nibbles (j and j + 16)."""
    parts = [to_bytes(grid.d, torch.float16)]
    if grid.zero == 0:
        parts.append(to_bytes(-grid.dmin, torch.float16))
    if grid.levels == 32:
        parts.append(pack_fields((codes >> 4).reshape(len(codes), 4, 8).transpose(1, 2).reshape(len(codes), -1), 1, 4))
    return torch.cat([*parts, pack_fields(codes, 4, 16)], dim=1)


def unpack_nibbles(data: Tensor, *, bits: int, affine: bool) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_nibbles`."""
    d = from_bytes(data[:, :2], torch.float16)[:, 0].to(torch.float32)
    codes = unpack_fields(data[:, -16:], 4, 16)
    if bits == 5:
        high = unpack_fields(data[:, -20:-16], 1, 4)
        codes = codes | high.reshape(len(data), 8, 4).transpose(1, 2).reshape(len(data), -1) << 4
    if not affine:
        return symmetric_grid(d, bits), codes
    return affine_grid(d, from_bytes(data[:, 2:4], torch.float16)[:, 0].to(torch.float32), bits), codes


def pack_eight(grid: AffineGrid, codes: Tensor) -> Tensor:
    """d, then 32 signed bytes."""
    return torch.cat((to_bytes(grid.d, torch.float16), (codes - 128 & 0xFF).to(torch.uint8)), dim=1)


def unpack_eight(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_eight`."""
    d = from_bytes(data[:, :2], torch.float16)[:, 0].to(torch.float32)
    return symmetric_grid(d, 8), (data[:, 2:].to(torch.int32) + 128) & 0xFF


def _nibbles(bits: int, *, affine: bool) -> Kernel:
    search = partial(search_ranged if affine else search_signed, bits=bits)
    return Kernel(search, pack_nibbles, partial(unpack_nibbles, bits=bits, affine=affine), uses_row=True)


KERNELS = {
    "q8_0": Kernel(search_eight, pack_eight, unpack_eight),
    "q4_0": _nibbles(4, affine=False),
    "q4_1": _nibbles(4, affine=True),
    "q5_0": _nibbles(5, affine=False),
    "q5_1": _nibbles(5, affine=True),
}
