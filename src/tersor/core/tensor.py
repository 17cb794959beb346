"""A matrix in a number format: the bytes, and what is needed to read them again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import ShapeError
from tersor.core.format import Format

__all__ = ["QuantizedTensor"]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """Packed rows of one tensor.

    format    the number format of `data`
    shape     shape of the tensor, numpy order; the last axis is the one that blocks run along
    data      uint8 [rows, row_bytes], rows = product of the leading axes; owned by this value
    fallback  why a method had to take a simpler way, None: it did not
    """

    format: Format
    shape: tuple[int, ...]
    data: Bytes
    fallback: str | None = None

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 0:
            raise ShapeError(f"a tensor needs at least one axis and no negative one, got {self.shape}")
        rows = math.prod(self.shape[:-1])
        expected = (rows, self.format.row_bytes(self.shape[-1]))
        if self.data.shape != expected:
            raise ShapeError(f"{self.format.name} {self.shape} takes bytes {expected}, got {self.data.shape}")

    @property
    def nbytes(self) -> int:
        """Size in bytes, scales included."""
        return int(self.data.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales included; 0 for an empty tensor."""
        weights = math.prod(self.shape)
        return self.nbytes * 8 / weights if weights else 0.0

    def dequantize(self, threads: int = 0) -> Float32:
        """Decode to float32 [shape]."""
        return self.format.decode(self.data, self.shape[-1], threads=threads).reshape(self.shape)
