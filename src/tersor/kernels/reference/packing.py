"""How codes lie in the bytes of a block: pairs of pack and unpack, codes int32 [rows, …], bytes uint8 [rows, …]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "from_bytes",
    "pack_fields",
    "pack_q3_scales",
    "pack_q4_scales",
    "pack_trits",
    "to_bytes",
    "unpack_fields",
    "unpack_q3_scales",
    "unpack_q4_scales",
    "unpack_trits",
]

TRIT_RUNS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))  # first code, stride, codes per byte
POWERS_OF_THREE = (1, 3, 9, 27, 81)


def to_bytes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Little-endian bytes of numbers [rows] or [rows, n], stored as `dtype`: uint8 [rows, n · size]."""
    stored = x.reshape(len(x), -1).to(dtype).contiguous()
    return stored.view(torch.uint8).reshape(len(x), -1)


def from_bytes(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Invert `to_bytes`: numbers [rows, n] of type `dtype`."""
    return data.clone(memory_format=torch.contiguous_format).view(dtype)  # one row is contiguous whatever its stride


def pack_fields(codes: Tensor, bits: int, stride: int) -> Tensor:
    """Put the codes l, l + stride, l + 2·stride, … into byte l, from the low bits up.

    codes   int32 [rows, n]; only their low `bits` are stored
    stride  bytes of one chunk; a chunk holds stride · 8/bits codes, chunks follow each other
    """
    fields = 8 // bits
    chunks = (codes & ((1 << bits) - 1)).reshape(len(codes), -1, fields, stride)
    shifts = torch.arange(fields, device=codes.device, dtype=torch.int32) * bits
    packed = (chunks << shifts[:, None]).sum(dim=2)
    return packed.to(torch.uint8).reshape(len(codes), -1)


def unpack_fields(data: Tensor, bits: int, stride: int) -> Tensor:
    """Invert `pack_fields`: int32 [rows, n]."""
    fields = 8 // bits
    shifts = torch.arange(fields, device=data.device, dtype=torch.int32) * bits
    chunks = data.to(torch.int32).reshape(len(data), -1, 1, stride) >> shifts[:, None]
    return (chunks & ((1 << bits) - 1)).reshape(len(data), -1)


def pack_q4_scales(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes: uint8 [rows, 12]."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    third = (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4
    return torch.cat((first, second, third), dim=1).to(torch.uint8)


def unpack_q4_scales(data: Tensor) -> tuple[Tensor, Tensor]:
    """Invert `pack_q4_scales`: scales and minima, int32 [rows, 8] each."""
    first, second, third = data.to(torch.int32).reshape(-1, 3, 4).unbind(1)
    scales = torch.cat((first & 63, (third & 15) | (first >> 6) << 4), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | (second >> 6) << 4), dim=1)
    return scales, minima


def pack_q3_scales(scales: Tensor) -> Tensor:
    """Sixteen 6-bit scales, 0 … 63, in 12 bytes: low nibbles of j and j + 8, then the top bits of j % 4."""
    low = pack_fields(scales, 4, 8)
    high = pack_fields(scales >> 4, 2, 4)
    return torch.cat((low, high), dim=1)


def unpack_q3_scales(data: Tensor) -> Tensor:
    """Invert `pack_q3_scales`: int32 [rows, 16]."""
    return unpack_fields(data[:, :8], 4, 8) | unpack_fields(data[:, 8:], 2, 4) << 4


def pack_trits(codes: Tensor) -> Tensor:
    """256 base-3 digits in 52 bytes: five a byte as a fraction of 243 scaled to 256, the last four bytes hold four."""
    parts = []
    for first, stride, count in TRIT_RUNS:
        length = 160 if stride == 32 else stride * count
        digits = codes[:, first : first + length].reshape(len(codes), count, stride)
        number = torch.zeros_like(digits[:, 0])
        for i in range(5):
            number = number * 3 + (digits[:, i] if i < count else 0)
        parts.append(((number & 0xFF) * 256 + 242) // 243)
    return torch.cat(parts, dim=1).to(torch.uint8)


def unpack_trits(data: Tensor) -> Tensor:
    """Invert `pack_trits`: int32 [rows, 256]; any byte decodes, 13 of the 256 are never written."""
    parts = []
    start = 0
    for _, stride, count in TRIT_RUNS:
        number = data[:, start : start + stride].to(torch.int32)
        start += stride
        parts += [((number * power & 0xFF) * 3) >> 8 for power in POWERS_OF_THREE[:count]]
    return torch.cat(parts, dim=1)
