"""q2_k, q4_k, q5_k: 256 weights in groups of 16 or 32, each group with a quantized scale and a quantized minimum.

Source: facts of ggml's super-block layouts and encoders; bit-identical to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant, divided, half, nearest_int, root, sum_in_order
from tersor.kernels.reference.grids import AffineGrid, spread
from tersor.kernels.reference.kernel import Blocks, Kernel, mean_square
from tersor.kernels.reference.packing import (
    from_bytes,
    pack_fields,
    pack_q4_scales,
    to_bytes,
    unpack_fields,
    unpack_q4_scales,
)
from tersor.kernels.reference.search import Steps, search_affine, search_nonnegative

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["KERNELS", "Q2", "Q4", "Q5", "Kind", "grid_of"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What distinguishes the three formats.

    width      weights per group
    bits       bits per code
    scale_top  largest quantized scale and minimum
    steps      trial scales without importance
    """

    width: int
    bits: int
    scale_top: int
    steps: Steps

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1


IMPORTANCE_STEPS = Steps(-0.9, 0.05, 36)
Q2 = Kind(16, 2, 15, Steps(-0.5, 0.1, 15, absolute=True))
Q4 = Kind(32, 4, 63, Steps(-1.0, 0.1, 20))
Q5 = Kind(32, 5, 63, Steps(-0.5, 0.1, 15))


def search(blocks: Blocks, *, kind: Kind) -> tuple[AffineGrid, Tensor]:
    """Fit every group, quantize the fitted scales and minima, round once more onto what was stored."""
    count = blocks.x.shape[1]
    x, importance = blocks.grouped(kind.width)
    if importance is None:
        scale, minimum, codes = search_affine(x, _own_weights(x, kind), kind.top, kind.steps)
        scale, minimum = scale.reshape(count, -1), minimum.reshape(count, -1)
        d, scales = _by_largest(scale, kind)
        dmin, minima = _by_largest(minimum, kind)
    else:
        # q2_k weighs with the mean square of the block, the others with twice that
        energy = sum_in_order(blocks.x * blocks.x) * (1 if kind is Q2 else 2) / 256
        w = importance * root(energy.repeat_interleave(256 // kind.width) + x * x)
        scale, minimum, codes = search_affine(x, w, kind.top, IMPORTANCE_STEPS)
        share = sum_in_order(w).reshape(count, -1).T
        d, scales = _by_share(scale.reshape(count, -1), share, kind)
        dmin, minima = _by_share(minimum.reshape(count, -1), share, kind)
    grid = grid_of(half(d), half(dmin), scales, minima, kind)
    codes = codes.reshape(kind.width, count, -1).permute(1, 2, 0).reshape(count, 256)
    return grid, _rounded_again(blocks.x.T, grid, codes)


def _own_weights(x: Tensor, kind: Kind) -> Tensor:
    if kind is Q2:
        return x.abs()
    return root(mean_square(x)) + x.abs()


def _by_largest(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Quantize scales or minima, x [blocks, groups], by their largest: its share of the top code, and codes."""
    high = torch.zeros_like(x[:, 0])
    for value in x.T:
        high = torch.where(value > high, value, high)
    zero = torch.zeros_like(high)
    inverse = torch.where(high > 0, divided(kind.scale_top, high), zero)
    codes = nearest_int(inverse[:, None] * x) & 0xFF
    codes = codes & 0x0F if kind is Q2 else codes.clamp(max=63)
    return high / constant(kind.scale_top, high), torch.where((high > 0)[:, None], codes, torch.zeros_like(codes))


def _by_share(x: Tensor, share: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Quantize x [blocks, groups] by a search with the summed weight of each group, [groups, blocks]."""
    scale, codes = search_nonnegative(x.T, share, kind.scale_top)
    return scale, codes.T & kind.scale_top


def _rounded_again(x: Tensor, grid: AffineGrid, codes: Tensor) -> Tensor:
    """Round x [blocks, 256] on the stored grid; groups whose step became 0 keep the codes of the search."""
    step, offset = spread(grid.steps, grid.width), spread(grid.offsets, grid.width)
    again = nearest_int((x + offset) / step).clamp(0, grid.levels - 1)
    return torch.where(step != 0, again, codes)


def grid_of(d: Tensor, dmin: Tensor, scales: Tensor, minima: Tensor, kind: Kind) -> AffineGrid:
    """Grid of super-blocks: d, dmin float32 [blocks] as stored, scales and minima int32 [blocks, groups]."""
    return AffineGrid(d, scales, 0, 1 << kind.bits, kind.width, dmin, minima)


def pack_two(grid: AffineGrid, codes: Tensor) -> Tensor:
    """Scales (low nibble) with minima, 64 bytes of codes, d, dmin."""
    scales = (grid.scales | grid.minima << 4).to(torch.uint8)
    halves = to_bytes(torch.stack((grid.d, grid.dmin), dim=1), torch.float16)
    return torch.cat((scales, pack_fields(codes, 2, 32), halves), dim=1)


def unpack_two(data: Tensor) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_two`."""
    scales = data[:, :16].to(torch.int32)
    d, dmin = from_bytes(data[:, 80:], torch.float16).to(torch.float32).T
    return grid_of(d, dmin, scales & 15, scales >> 4, Q2), unpack_fields(data[:, 16:80], 2, 32)


def pack_wide(grid: AffineGrid, codes: Tensor) -> Tensor:
    """d, dmin, 12 bytes of scales and minima, (fifth bits in 32 bytes,) 128 bytes of low nibbles."""
    parts = [to_bytes(torch.stack((grid.d, grid.dmin), dim=1), torch.float16)]
    parts.append(pack_q4_scales(grid.scales, grid.minima))
    if grid.levels == 32:
        parts.append(pack_fields(codes >> 4, 1, 32))
    return torch.cat([*parts, pack_fields(codes, 4, 32)], dim=1)


def unpack_wide(data: Tensor, *, kind: Kind) -> tuple[AffineGrid, Tensor]:
    """Invert `pack_wide`."""
    d, dmin = from_bytes(data[:, :4], torch.float16).to(torch.float32).T
    scales, minima = unpack_q4_scales(data[:, 4:16])
    codes = unpack_fields(data[:, -128:], 4, 32)
    if kind is Q5:
        codes = codes | unpack_fields(data[:, 16:48], 1, 32) << 4
    return grid_of(d, dmin, scales, minima, kind), codes


KERNELS = {
    "q2_k": Kernel(partial(search, kind=Q2), pack_two, unpack_two),
    "q4_k": Kernel(partial(search, kind=Q4), pack_wide, partial(unpack_wide, kind=Q4)),
    "q5_k": Kernel(partial(search, kind=Q5), pack_wide, partial(unpack_wide, kind=Q5)),
}
