"""What llama.cpp holds twice on a processor: matrices whose rows it packs anew while it loads them.

Source: llama.cpp, ggml/src/ggml-cpu/repack.cpp, `ggml_repack_get_optimal_repack_type` (2026). The copy lies in memory
of its own, as large as the original, which stays mapped from the file: the system may take the mapped pages back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from tersor.evaluation.speed.traffic import LOOKUPS, Weight
from tersor.models.model import kind_of

__all__ = ["REPACKED", "repacked_bytes"]

_AVX2, _AVX512, _NEON, _DOT = ("avx2",), ("avx512f",), ("asimd",), ("asimd", "asimddp")
REPACKED: Mapping[str, tuple[tuple[tuple[str, ...], int], ...]] = MappingProxyType(
    {
        "q4_0": ((_AVX2, 8), (_DOT, 4)),
        "q4_k": ((_AVX2, 8), (_DOT, 8)),
        "q2_k": ((_AVX512, 8),),
        "q5_k": ((_DOT, 8),),
        "q6_k": ((_DOT, 8),),
        "q8_0": ((_DOT, 4),),
        "iq4_nl": ((_AVX2, 8), (_NEON, 4)),
        "mxfp4": ((_AVX2, 8), (_DOT, 4)),
    }
)
"""Type → instruction sets, as Linux spells them, with which its rows are packed anew, and what divides their number.

Builds for AMX pack more types, in a way of their own: they are not counted."""


def repacked_bytes(weights: Iterable[Weight], flags: Collection[str]) -> float:
    """Return the bytes of the copies on a processor with these instruction sets.

    Rows that are looked up are not multiplied and not copied; an embedding that is the output matrix too, is.
    """
    rows = list(weights)
    is_tied = not any(kind_of(row.name) == "output" for row in rows)
    total = 0.0
    for row in rows:
        kind = kind_of(row.name)
        is_looked_up = kind in LOOKUPS and not (kind == "token_embd" and is_tied)
        if not is_looked_up and _is_repacked(row, flags):
            total += row.nbytes
    return total


def _is_repacked(row: Weight, flags: Collection[str]) -> bool:
    if len(row.shape) < 2 or min(row.shape) < 2:  # one row, or rows of one number, are vectors to it
        return False
    return any(
        set(needed) <= set(flags) and row.shape[-2] % multiple == 0
        for needed, multiple in REPACKED.get(row.label.lower(), ())
    )
