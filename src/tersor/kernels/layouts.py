"""Block geometry of every format that the kernels know: weights per block and bytes per block, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tersor.core.errors import SchemeError, ShapeError

__all__ = ["LAYOUTS", "Layout", "layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A block of `weights` numbers takes `size` bytes; no stored number is larger than `largest`."""

    weights: int
    size: int
    largest: float

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row; ShapeError if it does not divide into blocks."""
        if columns < 0 or columns % self.weights:
            raise ShapeError(f"{columns} columns do not divide into blocks of {self.weights}")
        return columns // self.weights * self.size


HALF = 65504.0  # largest binary16, the scale of most blocks
FITTED = 0.7 * HALF  # least-squares scales can exceed the plain one: 1/0.775 with four levels a side, then 1/0.97

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "f32": Layout(1, 4, 3.4028234663852886e38),
        "f16": Layout(1, 2, HALF),
        "bf16": Layout(1, 2, 3.3895313892515355e38),
        "q8_0": Layout(32, 34, 127 * HALF),
        "q4_0": Layout(32, 18, 8 * FITTED),
        "q4_1": Layout(32, 20, FITTED),
        "q5_0": Layout(32, 22, 16 * FITTED),
        "q5_1": Layout(32, 24, FITTED),
        "q2_k": Layout(256, 84, 15 * FITTED),
        "q3_k": Layout(256, 110, 32 * 4 * FITTED),
        "q4_k": Layout(256, 144, 63 * FITTED),
        "q5_k": Layout(256, 176, 63 * FITTED),
        "q6_k": Layout(256, 210, 128 * 32 * FITTED),
        "q8_k": Layout(256, 292, 2.0**127),
        "iq4_nl": Layout(32, 18, 113 * FITTED),
        "iq4_xs": Layout(256, 136, 31 * 113 * FITTED),
        "mxfp4": Layout(32, 17, 12 * 2.0**124),
        "tq1_0": Layout(256, 54, HALF),
        "tq2_0": Layout(256, 66, HALF),
        "binary": Layout(128, 18, HALF),
    }
)


def layout(name: str) -> Layout:
    """Layout of the format `name`; SchemeError if no kernel knows it."""
    if name not in LAYOUTS:
        raise SchemeError(f"no kernel for the format {name!r}; there are kernels for {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
