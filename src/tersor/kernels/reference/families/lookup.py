"""iq4_nl, iq4_xs, mxfp4, binary: codes that index a small table of values, times a scale.

Source: facts of ggml's block layouts and encoders, bit-identical to them; OCP Microscaling Formats v1.0 for mxfp4;
binary is sign · mean |x| in ggml's q1_0 layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import (
    constant,
    divided,
    half,
    largest_magnitude,
    nearest_int,
    root,
    sum_in_order,
)
from tersor.kernels.reference.grids import TableGrid
from tersor.kernels.reference.kernel import Blocks, Kernel
from tersor.kernels.reference.packing import from_bytes, pack_fields, to_bytes, unpack_fields
from tersor.kernels.reference.search import TINY

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["FOUR_BIT_FLOATS", "KERNELS", "NONLINEAR", "WIDTH", "exponent_of", "grid_of", "nearest_entry", "power_of"]

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FOUR_BIT_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # e2m1, doubled; ggml's integers have no -0
WIDTH = 32
TRIES = 7


def _table(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def grid_of(d: Tensor, values: tuple[float, ...], width: int, scales: Tensor | None = None) -> TableGrid:
    """Grid on the table `values`: d float32 [blocks], scales int32 [blocks, groups], None: one group, 1."""
    if scales is None:
        scales = torch.ones((len(d), 1), dtype=torch.int32, device=d.device)
    return TableGrid(d, scales, _table(values, d), width)


def nearest_entry(x: Tensor) -> Tensor:
    """Index of the nearest entry of NONLINEAR, int32; of two equally near ones the upper; the last for NaN."""
    table = _table(NONLINEAR, x)
    upper = torch.searchsorted(table, x.contiguous(), right=True).clamp(1, 15)
    upper = torch.where(x.isnan(), torch.full_like(upper, 15), upper)
    lower_is_nearer = x - table[upper - 1] < table[upper] - x
    index = torch.where(lower_is_nearer, upper - 1, upper)
    index = torch.where(x <= table[0], torch.zeros_like(index), index)
    return torch.where(x >= table[15], torch.full_like(index, 15), index).to(torch.int32)


def search_scale(x: Tensor, w: Tensor) -> Tensor:
    """Scale of groups [32, groups] on the table NONLINEAR: 16 trials, each refitted by weighted least squares."""
    magnitude, signed = largest_magnitude(x)
    table = _table(NONLINEAR, x)
    first = divided(1, -signed / constant(NONLINEAR[0], x))
    zero = torch.zeros_like(signed)
    scale, best = zero, zero
    for i, inverse in enumerate([first, *(divided(t + NONLINEAR[0], signed) for t in range(-TRIES, TRIES + 1))]):
        values = table[nearest_entry(inverse * x).long()]
        wq = w * values
        sum_qx, sum_q2 = sum_in_order(torch.stack((wq * x, wq * values), dim=1))
        better = sum_q2 > 0
        if i:
            better &= sum_qx * sum_qx > best * sum_q2
        scale = torch.where(better, sum_qx / sum_q2, scale)
        best = torch.where(better, scale * sum_qx, best)
    return torch.where(magnitude < TINY, zero, scale)


def _weights(blocks: Blocks) -> Tensor:
    """What an error costs, [32, groups]: x², or importance · sqrt(twice the mean square of the block + x²)."""
    x, importance = blocks.grouped(WIDTH)
    if importance is None:
        return x * x
    energy = sum_in_order(blocks.x * blocks.x) * (2 / len(blocks.x))
    return importance * root(energy.repeat_interleave(len(blocks.x) // WIDTH) + x * x)


def search_nonlinear(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """iq4_nl: one scale for 32 weights."""
    scale = search_scale(blocks.x, _weights(blocks))
    inverse = torch.where(scale != 0, divided(1, scale), torch.zeros_like(scale))
    return grid_of(half(scale), NONLINEAR, WIDTH), nearest_entry(inverse * blocks.x).T


def search_nonlinear_super(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """iq4_xs: eight groups of 32 whose scales are six-bit multiples of one binary16."""
    count = blocks.x.shape[1]
    x, _ = blocks.grouped(WIDTH)
    by_group = search_scale(x, _weights(blocks)).reshape(count, 8)
    _, signed = largest_magnitude(by_group.T)
    d = -signed / constant(32, signed)
    inverse = torch.where(d != 0, divided(1, d), torch.zeros_like(d))
    scales = nearest_int(inverse[:, None] * by_group).clamp(-32, 31)
    step = d[:, None] * scales
    inverse = torch.where(step != 0, divided(1, step), torch.zeros_like(step))
    codes = nearest_entry(inverse.repeat_interleave(WIDTH, dim=1) * blocks.x.T)
    return grid_of(half(d), NONLINEAR, WIDTH, scales), codes


def search_microscaling(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """mxfp4: the scale is the power of two that puts the largest magnitude into the top binade of e2m1.

    Differs from ggml below 2^-125, where C leaves its conversion open: the smallest exponent is taken.
    """
    exponent = exponent_of(blocks.x)
    grid = grid_of(power_of(exponent), FOUR_BIT_FLOATS, WIDTH)
    return grid, grid.round_all(blocks.x.T)


def exponent_of(x: Tensor) -> Tensor:
    """Exponents of mxfp4, int32 ≥ 0, that put the largest magnitude of blocks [32, blocks] into e2m1's top binade."""
    magnitude, _ = largest_magnitude(x)
    # log2f rounds up to a whole number just below powers of two; double, then float32, does the same
    whole = magnitude.to(torch.float64).log2().to(torch.float32).floor()
    return torch.where(magnitude > 0, whole + 125, torch.zeros_like(whole)).clamp(min=0).to(torch.int32)


def power_of(exponent: Tensor) -> Tensor:
    """2^(exponent - 128) as float32, subnormal for 0 and 1: half an e8m0, because the table is doubled."""
    low = torch.where(exponent == 0, torch.full_like(exponent, 0x00200000), torch.full_like(exponent, 0x00400000))
    return torch.where(exponent < 2, low, (exponent - 1) << 23).to(torch.int32).view(torch.float32)


def search_binary(blocks: Blocks) -> tuple[TableGrid, Tensor]:
    """binary: the mean magnitude, and one bit for the sign (set: not negative)."""
    total = sum_in_order(blocks.x.abs())
    grid = grid_of(half(total / constant(len(blocks.x), total)), (-1.0, 1.0), len(blocks.x))
    return grid, (blocks.x >= 0).to(torch.int32).T


def pack_nonlinear(grid: TableGrid, codes: Tensor) -> Tensor:
    """iq4_nl: d, 16 bytes of nibbles (j and j + 16)."""
    return torch.cat((to_bytes(grid.d, torch.float16), pack_fields(codes, 4, 16)), dim=1)


def unpack_nonlinear(data: Tensor) -> tuple[TableGrid, Tensor]:
    """Invert `pack_nonlinear`."""
    d = from_bytes(data[:, :2], torch.float16)[:, 0].to(torch.float32)
    return grid_of(d, NONLINEAR, WIDTH), unpack_fields(data[:, 2:], 4, 16)


def pack_nonlinear_super(grid: TableGrid, codes: Tensor) -> Tensor:
    """iq4_xs: d, top bits of the scales in 16 bits, their low nibbles in 4 bytes, 128 bytes of nibbles."""
    scales = grid.scales + 32
    parts = (
        to_bytes(grid.d, torch.float16),
        pack_fields(scales >> 4, 2, 1),
        pack_fields(scales, 4, 1),
        pack_fields(codes, 4, 16),
    )
    return torch.cat(parts, dim=1)


def unpack_nonlinear_super(data: Tensor) -> tuple[TableGrid, Tensor]:
    """Invert `pack_nonlinear_super`."""
    d = from_bytes(data[:, :2], torch.float16)[:, 0].to(torch.float32)
    scales = unpack_fields(data[:, 4:8], 4, 1) | unpack_fields(data[:, 2:4], 2, 1) << 4
    return grid_of(d, NONLINEAR, WIDTH, scales - 32), unpack_fields(data[:, 8:], 4, 16)


def pack_microscaling(grid: TableGrid, codes: Tensor) -> Tensor:
    """mxfp4: exponent byte, 16 bytes of nibbles (j and j + 16)."""
    bits = grid.d.contiguous().view(torch.int32)
    exponent = torch.where(bits < 0x00800000, bits >> 22, (bits >> 23) + 1)
    return torch.cat((to_bytes(exponent, torch.uint8), pack_fields(codes, 4, 16)), dim=1)


def unpack_microscaling(data: Tensor) -> tuple[TableGrid, Tensor]:
    """Invert `pack_microscaling`."""
    d = power_of(data[:, 0].to(torch.int32))
    return grid_of(d, FOUR_BIT_FLOATS, WIDTH), unpack_fields(data[:, 1:], 4, 16)


def pack_binary(grid: TableGrid, codes: Tensor) -> Tensor:
    """binary: d, 16 bytes of bits, the first weight in the lowest bit."""
    return torch.cat((to_bytes(grid.d, torch.float16), pack_fields(codes, 1, 1)), dim=1)


def unpack_binary(data: Tensor) -> tuple[TableGrid, Tensor]:
    """Invert `pack_binary`."""
    d = from_bytes(data[:, :2], torch.float16)[:, 0].to(torch.float32)
    return grid_of(d, (-1.0, 1.0), 128), unpack_fields(data[:, 2:], 1, 1)


KERNELS = {
    "iq4_nl": Kernel(search_nonlinear, pack_nonlinear, unpack_nonlinear),
    "iq4_xs": Kernel(search_nonlinear_super, pack_nonlinear_super, unpack_nonlinear_super),
    "mxfp4": Kernel(search_microscaling, pack_microscaling, unpack_microscaling),
    "binary": Kernel(search_binary, pack_binary, unpack_binary, plain=True),
}
