"""How a tensor of a net is rounded to integers: the scheme, and the scale and zero point that a tensor got."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.graph.net import Array, beside

__all__ = ["ACTIVATIONS", "USUAL", "Integers", "Precision", "Quantizer", "Scheme"]

ACTIVATIONS = ("static", "dynamic", "float")

Integers = npt.NDArray[np.integer]
LARGEST_BITS = 16
SMALLEST_BLOCK = 16
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Of a scale."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Integers of `bits` bits that share a scale.

    signed     whether codes may be negative
    symmetric  the zero point is 0 (signed) or half of the codes
    axis       one scale for each index of this axis; None: one for the tensor
    block      of a matrix: so many along its other axis share a scale; None: all of them
    """

    bits: int
    signed: bool
    symmetric: bool
    axis: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= LARGEST_BITS:
            raise SchemeError(f"a net is rounded to 2 to {LARGEST_BITS} bits, not {self.bits}")
        if self.block is not None and (self.axis not in (0, 1) or self.block < 1):
            raise SchemeError(f"blocks of {self.block} along axis {self.axis}: they divide the rows of a matrix")

    @property
    def lowest(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """Largest code."""
        return (1 << (self.bits - (1 if self.signed else 0))) - 1

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """The type that holds the codes."""
        size = 8 if self.bits <= 8 else 16
        return np.dtype(f"{'' if self.signed else 'u'}int{size}")


@dataclass(frozen=True, slots=True)
class Precision:
    """How finely a net is rounded.

    bits         of weights
    activations  "static": to ranges that calibration found; "dynamic": to the range of each batch, found at run time;
                 "float": not at all, weights alone are small
    block        so many weights of a row share a scale, where the row divides and the activations are not static
    wide         names of operators whose weights have 8 bits all the same
    """

    bits: int = 8
    activations: str = "static"
    block: int | None = None
    wide: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.activations not in ACTIVATIONS:
            raise SchemeError(f"activations are {', '.join(ACTIVATIONS)}, not {self.activations!r}")
        if self.block is not None and self.activations == "static":
            raise SchemeError(f"groups of {self.block} weights are for activations in float or dynamic, not static")
        if self.block is not None and (self.block < SMALLEST_BLOCK or self.block & (self.block - 1)):
            raise SchemeError(f"groups of {self.block} weights: engines take powers of two from {SMALLEST_BLOCK} on")

    def of_weight(self, node: str, shape: tuple[int, ...], axis: int | None) -> Scheme:
        """Return how the weight of an operator is rounded; `axis` is that of its outputs."""
        bits = 8 if node in self.wide else self.bits
        divides = self.block is not None and len(shape) == 2 and axis is not None and shape[1 - axis] % self.block == 0
        return Scheme(bits, signed=True, symmetric=True, axis=axis, block=self.block if divides else None)


USUAL = Precision()
"""8 bits everywhere, ranges from calibration."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantizer:
    """x becomes round(x / scale) + zero_point, saturated; a code q means (q - zero_point)·scale.

    scale       float32, [] or [channels]; with blocks a matrix, smaller along the axis that they divide
    zero_point  whole numbers of the same shape
    """

    scale: Float32
    zero_point: Integers
    scheme: Scheme

    @classmethod
    def of_range(cls, low: float, high: float, scheme: Scheme) -> Quantizer:
        """Spread the codes over low … high, widened to contain 0, which is met exactly.

        >>> q = Quantizer.of_range(0.0, 2.55, Scheme(8, signed=False, symmetric=False))
        >>> round(float(q.scale), 6), int(q.zero_point)
        (0.01, 0)
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if not np.isfinite(high - low):
            raise SchemeError(f"a range of {low} to {high} cannot be divided into steps")
        if scheme.symmetric:
            middle = 0 if scheme.signed else 1 << (scheme.bits - 1)
            top = scheme.highest - middle
            scale = max(-low, high) / top
            zero = middle
        else:
            scale = (high - low) / (scheme.highest - scheme.lowest)
            zero = scheme.lowest - round(low / scale) if scale > 0 else scheme.lowest
            zero = min(max(zero, scheme.lowest), scheme.highest)
        if scale < SMALLEST:  # nothing but zeros, or too small to divide by
            scale = 1.0
        if scale > LARGEST:
            raise SchemeError(f"a range of {low} to {high} cannot be divided into steps of float32")
        return cls(np.asarray(scale, np.float32), np.asarray(zero, scheme.dtype), scheme)

    def codes(self, values: Array) -> Integers:
        """Return the codes of float values, rounded half to even as QuantizeLinear does."""
        scale, zero = self._along(values)
        with np.errstate(over="ignore"):  # infinities saturate
            made = np.rint(values.astype(np.float32) / scale) + zero.astype(np.float32)
        codes: Integers = np.clip(made, self.scheme.lowest, self.scheme.highest).astype(self.scheme.dtype)
        return codes

    def values(self, codes: Integers) -> Float32:
        """Return what codes mean, float32."""
        scale, zero = self._along(codes)
        made: Float32 = (codes.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale
        return made

    def _along(self, values: Array) -> tuple[Float32, Integers]:
        """Return scale and zero point, shaped to stand beside `values`."""
        if self.scheme.axis is None:
            return self.scale, self.zero_point
        if self.scheme.block is not None:
            inner = 1 - self.scheme.axis
            return np.repeat(self.scale, self.scheme.block, inner), np.repeat(self.zero_point, self.scheme.block, inner)
        axis, rank = self.scheme.axis, values.ndim
        return beside(self.scale, axis, rank), beside(self.zero_point, axis, rank)
