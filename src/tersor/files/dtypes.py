"""Element types of checkpoints, and how their bytes become numbers.

Source: the safetensors format description; OCP 8-bit floating point (E4M3 has no infinity, E5M2 is IEEE-like).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32

__all__ = ["INTEGERS", "ITEM_BYTES", "decode"]

Numbers: TypeAlias = npt.NDArray[Any]
Bits: TypeAlias = npt.NDArray[np.uint8]

INTEGERS: dict[str, type[np.generic]] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64,
}  # fmt: skip
"""Types that are not weights; they are returned as they are."""


def decode(data: bytes | bytearray, dtype: str) -> Numbers:
    """Return the numbers in `data`: float32 for every float type, the integers themselves otherwise.

    >>> decode(bytes([0x80, 0x3F]), "BF16").tolist()
    [1.0]
    """
    if dtype in INTEGERS:
        raw = np.frombuffer(data, dtype=np.dtype(INTEGERS[dtype]).newbyteorder("<"))
        return raw.astype(INTEGERS[dtype], copy=False)
    return _FLOATS[dtype](np.frombuffer(data, dtype=np.uint8))


def _f64(data: Bits) -> Float32:
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and the caller is told of infinities
        return data.view("<f8").astype(np.float32)


def _f32(data: Bits) -> Float32:
    return data.view("<f4").astype(np.float32, copy=False)


def _f16(data: Bits) -> Float32:
    return data.view("<f2").astype(np.float32)


def _bf16(data: Bits) -> Float32:
    widened = data.view("<u2").astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def _f8_e4m3(data: Bits) -> Float32:
    return np.take(_table(exponent_bits=4, finite=True), data)


def _f8_e5m2(data: Bits) -> Float32:
    return np.take(_table(exponent_bits=5, finite=False), data)


@cache
def _table(exponent_bits: int, *, finite: bool) -> Float32:
    """Return the 256 values of an 8-bit float; `finite` types keep their top exponent for numbers, save one NaN."""
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = (codes & 0x7F) >> mantissa_bits
    fraction = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    magnitude = np.where(
        exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent.astype(np.float64) - bias)
    )
    if finite:
        magnitude[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 2**exponent_bits - 1
        magnitude[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    table: Float32 = np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)
    return table


_FLOATS: dict[str, Callable[[Bits], Float32]] = {
    "F64": _f64, "F32": _f32, "F16": _f16, "BF16": _bf16, "F8_E4M3": _f8_e4m3, "F8_E5M2": _f8_e5m2,
}  # fmt: skip

ITEM_BYTES: dict[str, int] = {
    **{name: np.dtype(kind).itemsize for name, kind in INTEGERS.items()},
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of one element, for every type that can be read."""
