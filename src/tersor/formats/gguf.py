"""The formats of GGUF files: rows of the table, and rules that hand over to the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tersor.core.arrays import Bytes, Float32
from tersor.core.format import Format, Grid
from tersor.kernels import codec, reference
from tersor.kernels.layouts import layout
from tersor.kernels.reference.families.lookup import FOUR_BIT_FLOATS, NONLINEAR

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMATS", "GgufRules"]


@dataclass(frozen=True, slots=True)
class GgufRules:
    """Rules of one GGUF format: grids come from the reference, whole matrices go through the codec."""

    name: str

    def fit(self, block: Tensor, importance: Tensor | None, search: str) -> Grid:
        """Fit with the reference, on the device of the block."""
        grid: Grid = reference.fit(self.name, block, importance, search)
        return grid

    def pack(self, grid: Any, codes: Tensor) -> Tensor:
        """Bytes of one block per row."""
        return reference.pack(self.name, grid, codes)

    def unpack(self, data: Tensor, columns: int) -> tuple[Any, Tensor]:  # noqa: ARG002 (fixed by the block)
        """Grid and codes of one block per row."""
        return reference.unpack(self.name, data)

    def encode(self, weight: Float32, *, importance: Float32 | None, search: str, threads: int) -> Bytes:
        """Encode a matrix."""
        return codec.encode(self.name, weight, importance, search, threads)

    def decode(self, data: Bytes, columns: int, *, threads: int) -> Float32:
        """Decode rows."""
        return codec.decode(self.name, data, columns, threads)


def _row(  # noqa: PLR0917 (a row of a table)
    name: str,
    family: str,
    ggml_type: int,
    bits: float,
    codes: tuple[float, float, float],
    unit: str,
    layout_words: str,
    *,
    fallback: str | None = "f16",
    importance: bool = False,
    stored: bool = True,
) -> Format:
    """One row; `codes` are lowest, highest and smallest step, `stored` is whether a file may hold it."""
    shape = layout(name)
    return Format(
        name=name,
        family=family,
        bits=bits,
        block=shape.weights,
        block_bytes=shape.size,
        span="block",
        layout=tuple(layout_words.split(", ")),
        lowest=codes[0],
        highest=codes[1],
        step=codes[2],
        unit=unit,
        largest=shape.largest,
        ggml_type=ggml_type,
        containers=("gguf",) if stored else (),
        engines=("llama.cpp",) if stored else (),
        fallback=fallback,
        uses_importance=importance,
        rules=GgufRules(name),
    )


F32, F16, BF16 = layout("f32").largest, layout("f16").largest, layout("bf16").largest
TABLE_STEP = float(min(b - a for a, b in pairwise(NONLINEAR)))
E2M1_TOP = max(FOUR_BIT_FLOATS) / 2  # the table holds them doubled
K4_SCALES = "scales+minima 8×6+8×6 bit"

FORMATS = (
    _row("f32", "float", 0, 32, (-F32, F32, 2.0**-149), "1", "f32", fallback=None),
    _row("f16", "float", 1, 16, (-F16, F16, 2.0**-24), "1", "f16", fallback=None),
    _row("bf16", "float", 30, 16, (-BF16, BF16, 2.0**-133), "1", "bf16", fallback=None),
    _row("q8_0", "legacy", 8, 8, (-128, 127, 1), "d", "d f16, codes 32×8 bit", importance=True),
    _row("q4_0", "legacy", 2, 4, (-8, 7, 1), "d", "d f16, codes 32×4 bit", importance=True),
    _row("q4_1", "legacy", 3, 4, (0, 15, 1), "d above m", "d f16, m f16, codes 32×4 bit", importance=True),
    _row("q5_0", "legacy", 6, 5, (-16, 15, 1), "d", "d f16, codes 32×1 bit, codes 32×4 bit", importance=True),
    _row(
        "q5_1", "legacy", 7, 5, (0, 31, 1), "d above m", "d f16, m f16, codes 32×1 bit, codes 32×4 bit", importance=True
    ),
    _row(
        *("q2_k", "k", 10, 2, (0, 3, 1), "d·scale above -dmin·minimum"),
        "scales+minima 16×(4+4) bit, codes 256×2 bit, d f16, dmin f16",
        fallback="q4_0",
        importance=True,
    ),
    _row(
        *("q3_k", "k", 11, 3, (-4, 3, 1), "d·scale"),
        "codes 256×1 bit, codes 256×2 bit, scales 16×6 bit, d f16",
        fallback="q4_0",
        importance=True,
    ),
    _row(
        *("q4_k", "k", 12, 4, (0, 15, 1), "d·scale above -dmin·minimum"),
        f"d f16, dmin f16, {K4_SCALES}, codes 256×4 bit",
        fallback="q5_0",
        importance=True,
    ),
    _row(
        *("q5_k", "k", 13, 5, (0, 31, 1), "d·scale above -dmin·minimum"),
        f"d f16, dmin f16, {K4_SCALES}, codes 256×1 bit, codes 256×4 bit",
        fallback="q5_1",
        importance=True,
    ),
    _row(
        *("q6_k", "k", 14, 6, (-32, 31, 1), "d·scale"),
        "codes 256×4 bit, codes 256×2 bit, scales 16×8 bit, d f16",
        fallback="q8_0",
        importance=True,
    ),
    _row(
        *("q8_k", "k", 15, 8, (-128, 127, 1), "d"),
        "d f32, codes 256×8 bit, sums of 16 codes 16×16 bit",
        fallback="q8_0",
        stored=False,
    ),
    _row("iq4_nl", "lookup", 20, 4, (-127, 113, TABLE_STEP), "d", "d f16, codes 32×4 bit", importance=True),
    _row(
        *("iq4_xs", "lookup", 23, 4, (-127, 113, TABLE_STEP), "d·scale"),
        "d f16, scales 8×2 bit, scales 8×4 bit, codes 256×4 bit",
        fallback="iq4_nl",
        importance=True,
    ),
    _row(
        "mxfp4",
        "lookup",
        39,
        4,
        (-E2M1_TOP, E2M1_TOP, 0.5),
        "power of two",
        "exponent e8m0, codes 32×4 bit",
        importance=True,
    ),
    _row(
        "tq1_0",
        "ternary",
        34,
        1.6,
        (-1, 1, 1),
        "d",
        "codes 240 in 48 bytes, codes 16 in 4 bytes, d f16",
        fallback="q4_0",
        importance=True,
    ),
    _row("tq2_0", "ternary", 35, 2, (-1, 1, 1), "d", "codes 256×2 bit, d f16", fallback="q4_0", importance=True),
    _row("binary", "lookup", 41, 1, (-1, 1, 2), "d", "d f16, signs 128×1 bit"),
)
