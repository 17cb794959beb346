"""tq1_0, tq2_0: 256 weights of -1, 0 or 1 times the largest magnitude, five base-3 digits or four pairs of bits a byte.

Source: facts of ggml's block layouts and encoders; bit-identical to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import divided, half, largest_magnitude, rounded_away
from tersor.kernels.reference.grids import AffineGrid
from tersor.kernels.reference.kernel import Blocks, Kernel
from tersor.kernels.reference.packing import (
    from_bytes,
    pack_fields,
    pack_trits,
    to_bytes,
    unpack_fields,
    unpack_trits,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["KERNELS", "grid_of"]


def grid_of(d: Tensor, levels: int) -> AffineGrid:
    """Grid of blocks with one scale as stored, float32 [blocks]."""
    ones = torch.ones((len(d), 1), dtype=torch.int32, device=d.device)
    return AffineGrid(d, ones, 1, levels, 256, torch.zeros_like(d), torch.zeros_like(ones))


def search(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """The largest magnitude becomes ±1; the rest rounds to -1, 0, 1."""
    magnitude, _ = largest_magnitude(blocks.x)
    inverse = torch.where(magnitude != 0, divided(1, magnitude), torch.zeros_like(magnitude))
    return grid_of(half(magnitude), 3), (rounded_away(blocks.x * inverse) + 1).T


def pack_digits(grid: AffineGrid, codes: Tensor) -> Tensor:
    """tq1_0: 52 bytes of base-3 digits, d."""
    return torch.cat((pack_trits(codes), to_bytes(grid.d, torch.float16)), dim=1)


def unpack_digits(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_digits`."""
    return grid_of(from_bytes(data[:, 52:], torch.float16)[:, 0].to(torch.float32), 3), unpack_trits(data[:, :52])


def pack_pairs(grid: AffineGrid, codes: Tensor) -> Tensor:
    """tq2_0: 64 bytes of bit pairs, d."""
    return torch.cat((pack_fields(codes, 2, 32), to_bytes(grid.d, torch.float16)), dim=1)


def unpack_pairs(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_pairs`; the pair 3, never written, means 2."""
    d = from_bytes(data[:, 64:], torch.float16)[:, 0].to(torch.float32)
    return grid_of(d, 3), unpack_fields(data[:, :64], 2, 32)


KERNELS = {
    "tq1_0": Kernel(search, pack_digits, unpack_digits),
    "tq2_0": Kernel(search, pack_pairs, unpack_pairs),
}
