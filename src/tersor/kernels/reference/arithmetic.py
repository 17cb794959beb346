"""C's float arithmetic on tensors: one rounding per operation, sums in the order of a scalar loop.

Tensors are element-major, [elements, …groups]: every group is a lane that sees the scalar order of operations, so
that results equal those of a C loop bit for bit, on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = [
    "constant",
    "divided",
    "extreme",
    "half",
    "largest_magnitude",
    "nearest_int",
    "root",
    "rounded_away",
    "single",
    "sum_in_order",
    "truncated",
]

MAGIC = 12582912.0  # 1.5 · 2^23: adding it leaves the rounded integer in the low bits of the mantissa


def single(value: float) -> float:
    """`value` rounded to float32."""
    return float(np.float32(value))


def constant(value: float, like: Tensor) -> Tensor:
    """A float32 scalar on the device of `like`: a Python divisor would become a reciprocal on CUDA."""
    return torch.full((), value, dtype=torch.float32, device=like.device)  # filled there: nothing is sent to the device


def divided(value: float, by: Tensor) -> Tensor:
    """`value` / `by` with one rounding: torch's own `scalar / tensor` multiplies by the reciprocal, which is two."""
    return constant(value, by) / by


def half(x: Tensor) -> Tensor:
    """`x` rounded to binary16 (half to even, overflow to infinity), still float32."""
    return x.to(torch.float16).to(torch.float32)


def nearest_int(x: Tensor) -> Tensor:
    """Round half to even by the mantissa trick: int32, exact for |x| < 2^22, its low bits beyond, 0 for NaN."""
    bits = (x + MAGIC).view(torch.int32)
    return torch.where(x.isnan(), torch.zeros_like(bits), (bits & 0x7FFFFF) - 0x400000)


def truncated(x: Tensor) -> Tensor:
    """Round towards zero, int32; 0 where the result does not fit (C leaves it open, x86 gives these low bits)."""
    return torch.where(x.abs() < 2.0**31, x, torch.zeros_like(x)).to(torch.int32)


def rounded_away(x: Tensor) -> Tensor:
    """Round half away from zero, int32; 0 where the result does not fit."""
    whole = x.trunc()
    away = (x - whole).abs() >= 0.5
    return truncated(whole + torch.where(away, torch.sign(x), torch.zeros_like(x)))


def root(x: Tensor) -> Tensor:
    """Square root with one rounding: torch's own for float32 is off by one unit for every sixth value on AVX-512."""
    return x.to(torch.float64).sqrt().to(torch.float32)


def sum_in_order(terms: Tensor) -> Tensor:
    """Sum over the first axis from its first element to its last, one rounding at a time, starting at +0."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total += term
    return total


def largest_magnitude(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over the first axis: the largest |x|, and the signed value that first reaches it (0 where all are 0)."""
    magnitude = torch.zeros_like(x[0])
    signed = torch.zeros_like(x[0])
    for value in x:
        larger = value.abs() > magnitude
        magnitude = torch.where(larger, value.abs(), magnitude)
        signed = torch.where(larger, value, signed)
    return magnitude, signed


def extreme(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over the first axis: smallest and largest value; of equal ones (±0) the first."""
    low, high = x[0], x[0]
    for value in x[1:]:
        low = torch.where(value < low, value, low)
        high = torch.where(value > high, value, high)
    return low, high
