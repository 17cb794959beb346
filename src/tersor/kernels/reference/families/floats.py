"""f32, f16, bf16: plain floats, rounded half to even."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.grids import FloatGrid
from tersor.kernels.reference.kernel import Blocks, Kernel
from tersor.kernels.reference.packing import from_bytes, to_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["KERNELS"]


def search(blocks: Blocks, *, kind: str) -> tuple[FloatGrid, Tensor]:
    """Bit patterns of the nearest floats."""
    grid = FloatGrid(kind)
    return grid, grid.round_all(blocks.x.T)


def pack(grid: FloatGrid, codes: Tensor) -> Tensor:
    """Little-endian bit patterns."""
    return to_bytes(codes, torch.int32 if grid.kind == "f32" else torch.int16)


def unpack(data: Tensor, *, kind: str) -> tuple[FloatGrid, Tensor]:
    """Invert `pack`."""
    if kind == "f32":
        return FloatGrid(kind), from_bytes(data, torch.int32)
    return FloatGrid(kind), from_bytes(data, torch.int16).to(torch.int32) & 0xFFFF


KERNELS = {
    kind: Kernel(partial(search, kind=kind), pack, partial(unpack, kind=kind), plain=True)
    for kind in ("f32", "f16", "bf16")
}
