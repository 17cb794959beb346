"""Products of rounded activations with integer weights: what the kernels of `kernels/linear` compute, step by step.

A weight is (code - zero)·scale, an activation code·scale. Sums of products of codes within a group are integers, exact
in any order; groups are added up in float32, in order. So instruction sets, threads and the number of tokens change
no bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from tersor.kernels.lazy import LazyModule
from tersor.kernels.reference.arithmetic import constant, divided

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "BLOCK",
    "SMALLEST",
    "TOPS",
    "Digits",
    "multiply",
    "pack_blocks",
    "pack_codes",
    "quantize_activations",
    "unpack_blocks",
    "unpack_codes",
]

Digits: TypeAlias = Literal[1, 2]
"""Bytes of an activation's code."""

BLOCK = 16
"""Rows of weights that lie side by side."""
TOPS = {1: 127, 2: 127 * 257}
"""Digits → largest code: each of its digits to the base 256 is from -128 to 127."""
SMALLEST = 2.0**-100
"""A group whose largest activation is smaller is taken for zeros: the inverse of its scale must be finite."""


def quantize_activations(x: Tensor, group: int, digits: Digits) -> tuple[Tensor, Tensor]:
    """Round activations to symmetric integers, each group of columns on a scale of its own.

    x       float [tokens, columns]
    group   columns that share a scale, which divide the columns
    digits  bytes of a code: 1 is int8, 2 about int16
    Returns codes, int32 [tokens, columns], and scales, float32 [tokens, groups]; the scale of a group with NaN or an
    infinity is NaN.

    >>> codes, scale = quantize_activations(torch.tensor([[254.0, -5.0]]), 2, 1)
    >>> codes.tolist(), scale.tolist()
    ([[127, -2]], [[2.0]])
    """
    groups = x.to(torch.float32).reshape(len(x), x.shape[1] // group, group)
    largest = groups.abs().amax(2)
    usable = (largest >= SMALLEST) & (largest < torch.inf)
    scale = torch.where(usable, largest / constant(TOPS[digits], largest), largest * 0)
    inverse = torch.where(usable, divided(TOPS[digits], largest), 0)
    codes = torch.where(usable[..., None], groups * inverse[..., None], 0).round()
    return codes.reshape(x.shape).to(torch.int32), scale


def multiply(
    x: Tensor,
    codes: Tensor,
    zeros: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    *,
    digits: Digits = 1,
    per_token: bool = False,
) -> Tensor:
    """Return x · weightᵀ + bias, float32 [tokens, rows].

    x          float [tokens, columns]
    codes      uint8 [rows, columns]
    zeros      uint8 [rows, groups]
    scales     float [rows, groups]
    bias       float [rows] or None
    digits     of the activations' codes
    per_token  whether all of a token's activations share a scale; else each group has its own, as the weights
    """
    columns, groups = codes.shape[1], scales.shape[1]
    width = columns // groups
    rounded, steps = quantize_activations(x, columns if per_token else width, digits)
    total = torch.zeros(len(x), len(codes))
    for group in range(groups):
        span = slice(group * width, (group + 1) * width)
        levels = codes[:, span].to(torch.float64) - zeros[:, group, None]
        low = (rounded[:, span] + 128) % 256 - 128 if digits == 2 else rounded[:, span]
        product = (low.to(torch.float64) @ levels.T).to(torch.float32)  # exact until here: integers below 2^53
        if digits == 2:
            high = (rounded[:, span] - low) // 256
            product = (high.to(torch.float64) @ levels.T).to(torch.float32) * 256 + product
        step = steps[:, 0 if per_token else group]
        total = total + product * (scales[:, group].to(torch.float32) * step[:, None])
    return total if bias is None else total + bias.to(torch.float32)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Lay codes out in the order in which the kernels read them: uint8 [blocks, columns · bits · BLOCK / 8].

    Rows come in blocks of 16, the last one filled up with zeros. A block holds, for every 4 columns (8 bits) or 8
    columns (4 bits), 4 bytes of each row; with 4 bits, the low half of a byte is of the first 4 columns and the high
    half of the next 4.

    codes  uint8 [rows, columns], below 2^bits; columns a multiple of 8
    bits   4 or 8

    >>> pack_codes(torch.arange(8, dtype=torch.uint8)[None], 4)[0, :4].tolist() == [0x40, 0x51, 0x62, 0x73]
    True
    """
    rows, columns = codes.shape
    run = 32 // bits
    filled = torch.nn.functional.pad(codes, (0, 0, 0, -rows % BLOCK))
    runs = filled.reshape(-1, BLOCK, columns // run, run // 4, 4).permute(0, 2, 1, 4, 3)
    packed = runs[..., 0] | runs[..., 1] << 4 if bits == 4 else runs[..., 0]
    return packed.reshape(len(filled) // BLOCK, -1).contiguous()


def unpack_codes(packed: Tensor, bits: int, rows: int) -> Tensor:
    """Invert `pack_codes`: uint8 [rows, columns]."""
    runs = packed.reshape(len(packed), -1, BLOCK, 4)
    digits = torch.stack([runs & 15, runs >> 4] if bits == 4 else [runs], dim=3)  # [blocks, runs, BLOCK, run / 4, 4]
    return digits.permute(0, 2, 1, 3, 4).reshape(len(packed) * BLOCK, -1)[:rows].contiguous()


def pack_blocks(values: Tensor) -> Tensor:
    """Lay [rows, groups] out as [blocks, groups, BLOCK], filled up with zeros."""
    rows, groups = values.shape
    filled = torch.nn.functional.pad(values, (0, 0, 0, -rows % BLOCK))
    return filled.reshape(-1, BLOCK, groups).transpose(1, 2).contiguous()


def unpack_blocks(packed: Tensor, rows: int) -> Tensor:
    """Invert `pack_blocks`: [rows, groups]."""
    return packed.transpose(1, 2).reshape(len(packed) * BLOCK, -1)[:rows].contiguous()
