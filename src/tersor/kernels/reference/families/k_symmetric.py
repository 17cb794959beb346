"""q3_k, q6_k: 256 weights in 16 groups with a quantized scale each; q8_k: 256 signed bytes under one float32 scale.

Source: facts of ggml's super-block layouts and encoders; bit-identical to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import divided, half, largest_magnitude, nearest_int, root, sum_in_order
from tersor.kernels.reference.grids import AffineGrid, spread
from tersor.kernels.reference.kernel import Blocks, Kernel
from tersor.kernels.reference.packing import (
    from_bytes,
    pack_fields,
    pack_q3_scales,
    to_bytes,
    unpack_fields,
    unpack_q3_scales,
)
from tersor.kernels.reference.search import TINY, descend_symmetric, search_symmetric

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["KERNELS", "WIDTH", "grid_of"]

WIDTH = 16


def grid_of(d: Tensor, scales: Tensor, zero: int, width: int = WIDTH) -> AffineGrid:
    """Signed scales, no minimum."""
    return AffineGrid(d, scales, zero, 2 * zero, width, torch.zeros_like(d), torch.zeros_like(scales))


def search_three(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """q3_k: fit every group, quantize the fitted scales to six bits, round once more."""
    count = blocks.x.shape[1]
    x, importance = blocks.grouped(WIDTH)
    if importance is None:
        scale, codes = descend_symmetric(x, 4)
        d, scales = _by_signed_largest(scale.reshape(count, -1).T)
    else:
        energy = sum_in_order(blocks.x * blocks.x) * 2 / 256
        w = importance * root(energy.repeat_interleave(16) + x * x)
        scale, codes = search_symmetric(x, w, 4)
        share = sum_in_order(w).reshape(count, -1).T
        d, scales = search_symmetric(scale.reshape(count, -1).T, share, 32)
    grid = grid_of(half(d), scales.T - 32, 4)
    return grid, _rounded_again(blocks.x.T, grid, _restored(codes, count))


def _by_signed_largest(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Six-bit codes of scales [groups, blocks], the one of largest magnitude becomes code 0 (-32)."""
    _, signed = largest_magnitude(scale)
    there = signed != 0
    inverse = divided(-32, signed)
    codes = nearest_int(inverse * scale).clamp(-32, 31) + 32
    zero = torch.zeros_like(signed)
    return torch.where(there, divided(1, inverse), zero), torch.where(there, codes, torch.zeros_like(codes))


def search_six(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """q6_k: fit every group, quantize the fitted scales to signed bytes, round once more."""
    count = blocks.x.shape[1]
    x, importance = blocks.grouped(WIDTH)
    scale, codes = search_symmetric(x, x * x if importance is None else importance, 32)
    by_group = scale.reshape(count, -1).T
    magnitude, signed = largest_magnitude(by_group)
    empty = magnitude < TINY
    inverse = divided(-128, signed)
    scales = nearest_int(inverse * by_group).clamp(max=127)
    scales = (scales + 128 & 0xFF) - 128
    zero = torch.zeros_like(signed)
    d = half(torch.where(empty, zero, divided(1, inverse)))
    grid = grid_of(d, torch.where(empty, torch.zeros_like(scales), scales).T, 32)
    codes = _rounded_again(blocks.x.T, grid, _restored(codes, count))
    return grid, torch.where(empty[:, None], torch.zeros_like(codes), codes)


def search_eight(blocks: Blocks) -> tuple[AffineGrid, Tensor]:
    """q8_k: the value of largest magnitude becomes -127."""
    _, signed = largest_magnitude(blocks.x)
    there = signed != 0
    inverse = divided(-127, signed)
    codes = nearest_int(inverse * blocks.x).clamp(max=127)
    zero = torch.zeros_like(signed)
    d = torch.where(there, divided(1, inverse), zero)
    ones = torch.ones((len(d), 1), dtype=torch.int32, device=d.device)
    return grid_of(d, ones, 128, 256), torch.where(there, (codes & 0xFF ^ 128), torch.full_like(codes, 128)).T


def _restored(codes: Tensor, count: int) -> Tensor:
    """Codes of groups, [16, blocks · groups], in the order of the block: [blocks, 256]."""
    return codes.reshape(WIDTH, count, -1).permute(1, 2, 0).reshape(count, 256)


def _rounded_again(x: Tensor, grid: AffineGrid, codes: Tensor) -> Tensor:
    """Round x [blocks, 256] on the stored grid; groups whose step became 0 keep the codes of the search."""
    step = spread(grid.steps, WIDTH)
    again = nearest_int(x / step).clamp(-grid.zero, grid.zero - 1) + grid.zero
    return torch.where(step != 0, again, codes)


def pack_three(grid: AffineGrid, codes: Tensor) -> Tensor:
    """Third bits in 32 bytes, low pairs in 64, six-bit scales in 12, d."""
    parts = (
        pack_fields(codes >> 2, 1, 32),
        pack_fields(codes, 2, 32),
        pack_q3_scales(grid.scales + 32),
        to_bytes(grid.d, torch.float16),
    )
    return torch.cat(parts, dim=1)


def unpack_three(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_three`."""
    codes = unpack_fields(data[:, :32], 1, 32) << 2 | unpack_fields(data[:, 32:96], 2, 32)
    d = from_bytes(data[:, 108:], torch.float16)[:, 0].to(torch.float32)
    return grid_of(d, unpack_q3_scales(data[:, 96:108]) - 32, 4), codes


def pack_six(grid: AffineGrid, codes: Tensor) -> Tensor:
    """128 bytes of low nibbles (l with l + 64), 64 of high pairs, 16 signed scales, d."""
    parts = (
        pack_fields(codes, 4, 64),
        pack_fields(codes >> 4, 2, 32),
        to_bytes(grid.scales, torch.int8),
        to_bytes(grid.d, torch.float16),
    )
    return torch.cat(parts, dim=1)


def unpack_six(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_six`."""
    codes = unpack_fields(data[:, :128], 4, 64) | unpack_fields(data[:, 128:192], 2, 32) << 4
    scales = from_bytes(data[:, 192:208], torch.int8).to(torch.int32)
    return grid_of(from_bytes(data[:, 208:], torch.float16)[:, 0].to(torch.float32), scales, 32), codes


def pack_eight(grid: AffineGrid, codes: Tensor) -> Tensor:
    """Float32 d, 256 signed bytes, the sums of every 16 of them."""
    signed = codes - 128
    sums = signed.reshape(len(codes), 16, 16).sum(dim=2)
    parts = (to_bytes(grid.d, torch.float32), to_bytes(signed, torch.int8), to_bytes(sums, torch.int16))
    return torch.cat(parts, dim=1)


def unpack_eight(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_eight`; the sums follow from the codes."""
    d = from_bytes(data[:, :4], torch.float32)[:, 0]
    ones = torch.ones((len(d), 1), dtype=torch.int32, device=d.device)
    return grid_of(d, ones, 128, 256), from_bytes(data[:, 4:260], torch.int8).to(torch.int32) + 128


KERNELS = {
    "q3_k": Kernel(search_three, pack_three, unpack_three),
    "q6_k": Kernel(search_six, pack_six, unpack_six),
    "q8_k": Kernel(search_eight, pack_eight, unpack_eight, plain=True),
}
