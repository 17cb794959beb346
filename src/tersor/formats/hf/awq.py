"""AWQ's tensors in its "gemm" version: four bits, packed along the outputs in an order of their own.

Source: facts of the files that AutoAWQ wrote and vLLM reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tersor.core.arrays import Bytes
from tersor.core.errors import FormatError, SchemeError, ShapeError, UnsupportedError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.formats.hf.groups import (
    SCALE_DTYPES,
    Decoded,
    Groups,
    Part,
    checked_columns,
    checked_part,
    checked_scales,
    format_of,
    integer_rules,
    pack_groups,
    row_blocks,
    store_scales,
    unpack_groups,
)
from tersor.formats.hf.words import Stored, Words, pack_words, unpack_words

__all__ = ["Awq"]

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs stands in nibble 0, 1, … of a word."""
BITS = 4


@dataclass(frozen=True, slots=True)
class Awq:
    """The layout."""

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
        """Return the tensors that a matrix becomes; SchemeError or ShapeError where it cannot."""
        rules = integer_rules(fmt, "awq")
        rows, columns, groups = checked_columns(fmt, shape, "awq")
        if rules.bits != BITS:
            raise SchemeError(f"awq stores 4 bits, {fmt.name} has {rules.bits}: write gptq or compressed-tensors")
        if rules.scale_type == "f32":
            raise SchemeError(f"awq stores scales of 16 bits: use {fmt.name}-f16 or {fmt.name}-bf16")
        if rows % 8:
            raise ShapeError(f"awq packs eight outputs a word: {rows} rows do not divide by 8")
        return {
            "qweight": Part("I32", (columns, rows // 8)),
            "qzeros": Part("I32", (groups, rows // 8)),
            "scales": Part(SCALE_DTYPES[rules.scale_type], (groups, rows)),
        }

    def encode(self, tensor: QuantizedTensor) -> dict[str, Stored]:
        """Return the tensors, codes verbatim."""
        parts = self.parts(tensor.format, tensor.shape)
        made: dict[str, Stored] = {name: np.empty(parts[name].shape, "<i4") for name in ("qweight", "qzeros")}
        scales = np.empty(parts["scales"].shape, np.float32)
        for start, stop in row_blocks(tensor.shape):
            groups = unpack_groups(tensor, start, stop)
            made["qweight"][:, start // 8 : stop // 8] = _pack(groups.codes.T)
            made["qzeros"][:, start // 8 : stop // 8] = _pack(groups.zeros.T)
            scales[:, start:stop] = groups.scales.T
        return {**made, "scales": store_scales(scales, parts["scales"].dtype)}

    def shape(self, parts: Mapping[str, Part], bits: int) -> tuple[int, int]:
        """Return (rows, columns) of what the tensors hold; FormatError where their shapes contradict each other."""
        if bits != BITS:
            raise UnsupportedError(f"awq with {bits} bits; 4 can be read")
        columns, words = checked_part(parts, "qweight", ("I32",), 2).shape
        groups, rows = checked_part(parts, "scales", ("F16", "BF16", "F32"), 2).shape
        if checked_part(parts, "qzeros", ("I32",), 2).shape != (groups, words) or rows != 8 * words:
            found = {name: part.shape for name, part in parts.items()}
            raise FormatError(f"{found} do not belong to one awq matrix")
        if columns % groups:
            raise UnsupportedError(f"{columns} columns in {groups} groups of unequal size cannot be read")
        return rows, columns

    def decode(
        self, stored: Mapping[str, Stored], dtype: str, bits: int, start: int = 0, stop: int | None = None
    ) -> Decoded:
        """Return rows `start` to `stop`, codes verbatim; see Gptq.decode."""
        groups, rows = stored["scales"].shape
        columns = len(stored["qweight"])
        last = rows if stop is None else stop
        first, end = start // 8, -(-last // 8)
        codes = _unpack(stored["qweight"][:, first:end])[:, start - 8 * first : last - 8 * first]
        zeros = _unpack(stored["qzeros"])
        is_symmetric = bool((zeros == 1 << (bits - 1)).all())
        fmt = format_of(bits, 0 if groups == 1 else columns // groups, symmetric=is_symmetric, scale_dtype=dtype)
        scales = checked_scales(stored["scales"])[:, start:last]
        kept = Groups(
            np.ascontiguousarray(codes.T),
            np.ascontiguousarray(zeros[:, start:last].T),
            np.ascontiguousarray(scales.T),
        )
        return Decoded(QuantizedTensor(fmt, (last - start, columns), pack_groups(kept, fmt)))


def _pack(codes: Bytes) -> Words:
    """Pack codes [lines, 8·n] into int32 [lines, n]."""
    eights = codes.reshape(len(codes), -1, 8)[..., NIBBLES]
    return pack_words(eights.reshape(len(codes), -1), BITS)


def _unpack(words: Words) -> Bytes:
    """Invert `_pack`."""
    nibbles = unpack_words(words, BITS, 8 * words.shape[1]).reshape(len(words), -1, 8)
    made = np.empty_like(nibbles)
    made[..., NIBBLES] = nibbles
    return made.reshape(len(words), -1)
