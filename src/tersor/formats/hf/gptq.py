"""GPTQ's tensors: qweight, qzeros, scales, g_idx, the first packed along the inputs, the second along the outputs.

Source: facts of the files that GPTQModel writes and vLLM reads. Version 1 stores the zero point less 1,
version 2 as it is.
Differs: groups are always of neighbouring columns here; files in activation order are read, not written.
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
    Order,
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
from tersor.formats.hf.words import Stored, pack_words, unpack_words, words_for

__all__ = ["Gptq"]


@dataclass(frozen=True, slots=True)
class Gptq:
    """The layout, in version 1 or 2."""

    version: int

    def parts(self, fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
        """Return the tensors that a matrix becomes; SchemeError or ShapeError where it cannot."""
        rules = integer_rules(fmt, "gptq")
        rows, columns, groups = checked_columns(fmt, shape, "gptq")
        if rules.scale_type == "f32":
            raise SchemeError(f"gptq stores scales of 16 bits: use {fmt.name}-f16 or {fmt.name}-bf16")
        for axis, count in (("columns", columns), ("rows", rows)):
            if count * rules.bits % 32:
                raise ShapeError(f"gptq packs whole words: {count} {axis} of {rules.bits} bits do not fill words of 32")
        return {
            "qweight": Part("I32", (words_for(columns, rules.bits), rows)),
            "qzeros": Part("I32", (groups, words_for(rows, rules.bits))),
            "scales": Part(SCALE_DTYPES[rules.scale_type], (groups, rows)),
            "g_idx": Part("I32", (columns,)),
        }

    def encode(self, tensor: QuantizedTensor) -> dict[str, Stored]:
        """Return the tensors, codes verbatim; SchemeError for a zero point of 0 in version 1."""
        parts = self.parts(tensor.format, tensor.shape)
        bits = int(tensor.format.bits)
        qweight = np.empty(parts["qweight"].shape, "<i4")
        zeros = np.empty(parts["scales"].shape, np.uint8)
        scales = np.empty(parts["scales"].shape, np.float32)
        for start, stop in row_blocks(tensor.shape):
            groups = unpack_groups(tensor, start, stop)
            qweight[:, start:stop] = pack_words(groups.codes, bits).T
            zeros[:, start:stop], scales[:, start:stop] = groups.zeros.T, groups.scales.T
        if self.version == 1 and not zeros.all():
            raise SchemeError("gptq version 1 stores zero points less 1 and has no 0: write gptq_v2")
        per_group = tensor.shape[1] // len(scales)
        return {
            "qweight": qweight,
            "qzeros": pack_words(zeros - np.uint8(self.version == 1), bits).astype("<i4", copy=False),
            "scales": store_scales(scales, parts["scales"].dtype),
            "g_idx": (np.arange(tensor.shape[1]) // per_group).astype("<i4"),
        }

    def shape(self, parts: Mapping[str, Part], bits: int) -> tuple[int, int]:
        """Return (rows, columns) of what the tensors hold; FormatError where their shapes contradict each other."""
        words, rows = checked_part(parts, "qweight", ("I32",), 2).shape
        groups, _ = checked_part(parts, "scales", ("F16", "BF16", "F32"), 2).shape
        columns = words * 32 // bits
        expected: dict[str, tuple[int, ...]] = {
            "qweight": (words_for(columns, bits), rows),
            "qzeros": (groups, words_for(rows, bits)),
            "scales": (groups, rows),
        }
        checked_part(parts, "qzeros", ("I32",), 2)
        if "g_idx" in parts:
            checked_part(parts, "g_idx", ("I32", "I64"), 1)
            expected["g_idx"] = (columns,)
        wrong = [name for name, shape in expected.items() if parts[name].shape != shape]
        if wrong or rows * bits % 32:
            found = {name: part.shape for name, part in parts.items()}
            raise FormatError(f"{found} do not belong to one gptq matrix of {bits} bits")
        if columns % groups:
            raise UnsupportedError(f"{columns} columns in {groups} groups of unequal size cannot be read")
        return rows, columns

    def decode(
        self, stored: Mapping[str, Stored], dtype: str, bits: int, start: int = 0, stop: int | None = None
    ) -> Decoded:
        """Return rows `start` to `stop`, codes verbatim.

        stored  the tensors, scales widened to float32; their shapes have passed `shape`
        dtype   of the scales in the file
        Raises FormatError for zero points or groups outside their range.
        """
        groups, rows = stored["scales"].shape
        last = rows if stop is None else stop
        columns = stored["qweight"].shape[0] * 32 // bits
        zeros = self._zeros(stored["qzeros"], bits, rows)
        is_symmetric = bool((zeros == 1 << (bits - 1)).all())
        order = _order(stored.get("g_idx"), groups, columns)
        codes = unpack_words(stored["qweight"][:, start:last].T, bits, columns)
        fmt = format_of(bits, 0 if groups == 1 else columns // groups, symmetric=is_symmetric, scale_dtype=dtype)
        scales = np.ascontiguousarray(checked_scales(stored["scales"])[:, start:last].T)
        values = Groups(
            codes if order is None else np.ascontiguousarray(codes[:, order]),
            np.ascontiguousarray(zeros[:, start:last].T),
            scales,
        )
        return Decoded(QuantizedTensor(fmt, (last - start, columns), pack_groups(values, fmt)), order)

    def _zeros(self, qzeros: Stored, bits: int, rows: int) -> Bytes:
        zeros = unpack_words(qzeros, bits, rows)
        if self.version == 2:
            return zeros
        if bool((zeros == (1 << bits) - 1).any()):
            raise FormatError(
                f"a zero point is stored as {(1 << bits) - 1}, which means {1 << bits} in gptq version 1: no "
                "code reaches it; it was a 0 that wrapped around"
            )
        return zeros + np.uint8(1)


def _order(g_idx: Stored | None, groups: int, columns: int) -> Order | None:
    """Return the order that puts the columns of each group side by side, None where they are so already."""
    if g_idx is None:
        return None
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise FormatError(f"g_idx names groups {g_idx.min()} to {g_idx.max()}, there are {groups}")
    if bool((np.bincount(g_idx, minlength=groups) != columns // groups).any()):
        raise UnsupportedError("g_idx makes groups of unequal size, which cannot be read")
    order = np.argsort(g_idx, kind="stable")
    return None if bool((order == np.arange(columns)).all()) else order
