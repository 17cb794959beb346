"""Integer groups as plain arrays: what every layout is packed from and unpacked to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.formats.hf.words import Stored
from tersor.formats.integer import IntegerGrid, IntegerRules, integer_format
from tersor.kernels import codec

__all__ = [
    "SCALE_DTYPES",
    "Decoded",
    "Groups",
    "Part",
    "checked_columns",
    "checked_part",
    "checked_scales",
    "format_of",
    "integer_rules",
    "pack_groups",
    "row_blocks",
    "store_scales",
    "unpack_groups",
]

SCALE_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_SCALE_TYPES = {dtype: kind for kind, dtype in SCALE_DTYPES.items()}
BLOCK_WEIGHTS = 1 << 20
"""Weights whose codes are held unpacked at a time."""
ROW_STEP = 32
"""Blocks of rows begin at multiples of this, so that words packed along the rows never straddle two of them."""

Order: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a layout: its element type as safetensors calls it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """A weight is (code - zero)·scale.

    codes   uint8 [rows, columns]
    zeros   uint8 [rows, groups]; half of the codes where the format is symmetric
    scales  float32 [rows, groups]
    """

    codes: Bytes
    zeros: Bytes
    scales: Float32


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A matrix as a checkpoint holds it.

    order  int64 [columns]: column j of `tensor` is column order[j] of the weight; None: they are the same
    """

    tensor: QuantizedTensor
    order: Order | None = None

    def dequantize(self) -> Float32:
        """Return the weight: float32 [rows, columns]."""
        values = self.tensor.dequantize()
        if self.order is None:
            return values
        made = np.empty_like(values)
        made[:, self.order] = values
        return made


def integer_rules(fmt: Format, container: str) -> IntegerRules:
    """Return the rules of an integer format; SchemeError where `fmt` is of another family."""
    if not isinstance(fmt.rules, IntegerRules):
        raise SchemeError(
            f"{container} stores integer groups, not {fmt.name}: choose a format such as int4-g128-sym-f16"
        )
    return fmt.rules


@lru_cache(maxsize=256)
def format_of(bits: int, group: int, *, symmetric: bool, scale_dtype: str) -> Format:
    """Return the format of what a layout holds; `group` 0: one scale per row."""
    where = f"g{group}" if group else "channel"
    return integer_format(f"int{bits}-{where}-{'sym' if symmetric else 'asym'}-{_SCALE_TYPES[scale_dtype]}")


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of rows that are unpacked together."""
    rows, columns = shape
    step = max(BLOCK_WEIGHTS // max(columns, 1) // ROW_STEP, 1) * ROW_STEP
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def unpack_groups(tensor: QuantizedTensor, start: int, stop: int) -> Groups:
    """Return rows `start` to `stop` of a matrix in an integer format."""
    fmt, columns = tensor.format, tensor.shape[-1]
    width = fmt.block or columns
    data = np.ascontiguousarray(tensor.data[start:stop]).reshape((stop - start) * columns // width, -1)
    grid: Any
    grid, codes = fmt.unpack(codec.tensor(data), width)
    zeros = grid.zero.numpy().astype(np.uint8).reshape(stop - start, -1)
    scales = grid.scale.numpy().reshape(stop - start, -1)
    return Groups(codes.numpy().astype(np.uint8).reshape(stop - start, columns), zeros, scales)


def pack_groups(groups: Groups, fmt: Format) -> Bytes:
    """Invert `unpack_groups`: the packed rows, uint8 [rows, bytes]."""
    rows, columns = groups.codes.shape
    width = fmt.block or columns
    levels = 1 << int(fmt.bits)
    zeros, scales = codec.tensor(groups.zeros.reshape(-1)), codec.tensor(groups.scales.reshape(-1))
    codes = codec.tensor(groups.codes.reshape(-1, width)).int()
    data: Bytes = fmt.pack(IntegerGrid(scales, zeros.int(), levels), codes).reshape(rows, -1).numpy()
    return data


def store_scales(scales: Float32, dtype: str) -> Stored:
    """Return scales as a file holds them; they are of that type already, so nothing is rounded."""
    if dtype == "BF16":
        return (np.ascontiguousarray(scales).view(np.uint32) >> 16).astype("<u2")
    return scales.astype("<f2" if dtype == "F16" else "<f4")


def checked_part(parts: Mapping[str, Part], name: str, dtypes: tuple[str, ...], axes: int) -> Part:
    """Return the part `name`, of one of `dtypes` and with so many axes, none of them empty; FormatError otherwise."""
    part = parts.get(name)
    if part is None:
        raise FormatError(f"the tensor {name} is missing beside {', '.join(parts)}")
    if part.dtype not in dtypes or len(part.shape) != axes or min(part.shape, default=1) < 1:
        raise FormatError(
            f"{name} is {part.dtype} {part.shape}; {' or '.join(dtypes)} with {axes} axes is needed, none of them empty"
        )
    return part


def checked_columns(fmt: Format, shape: tuple[int, ...], container: str) -> tuple[int, int, int]:
    """Return (rows, columns, groups per row) of a matrix; ShapeError where it is none or does not divide."""
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(f"{container} stores matrices [rows, columns], got {shape}")
    fmt.row_bytes(shape[1])
    return shape[0], shape[1], shape[1] // (fmt.block or shape[1])


def checked_scales(scales: Float32) -> Float32:
    """Refuse scales that are not finite; FormatError."""
    if not bool(np.isfinite(scales).all()):
        raise FormatError("a scale is infinite or not a number")
    return scales
