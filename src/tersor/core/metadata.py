"""One typed key of a model file: the value, and the width it is stored with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from tersor.core.errors import FormatError

__all__ = ["MetadataEntry", "MetadataKind", "MetadataValue"]

Scalar: TypeAlias = bool | int | float | str
MetadataValue: TypeAlias = Scalar | list[bool] | list[int] | list[float] | list[str]

MetadataKind: TypeAlias = Literal[
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "u64", "i64", "f64",
    "[u8]", "[i8]", "[u16]", "[i16]", "[u32]", "[i32]", "[f32]", "[bool]", "[str]", "[u64]", "[i64]", "[f64]",
]  # fmt: skip

_INTEGER_RANGES = {
    f"{sign}{bits}": (0, 2**bits - 1) if sign == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for sign in "ui"
    for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """A value and the GGUF type it is written as; the value fits the type, checked here.

    >>> MetadataEntry(32, "u32").value
    32
    >>> MetadataEntry([1.0, 0.5], "[f32]").kind
    '[f32]'
    """

    value: MetadataValue
    kind: MetadataKind

    def __post_init__(self) -> None:
        is_array = self.kind.startswith("[")
        if is_array != isinstance(self.value, list):
            raise FormatError(f"a metadata value of kind {self.kind} cannot be a {type(self.value).__name__}")
        values = self.value if isinstance(self.value, list) else [self.value]
        if values and not _all_fit(values, self.kind.strip("[]")):
            raise FormatError(f"the metadata value {self.value!r:.80} cannot be stored as {self.kind}")


def _all_fit(values: Sequence[object], kind: str) -> bool:
    """Tell whether every value survives being written as `kind`. Vocabularies are long, so no loop of our own."""
    if kind in _INTEGER_RANGES:
        low, high = _INTEGER_RANGES[kind]
        return set(map(type, values)) == {int} and low <= min(values) and max(values) <= high  # type: ignore[type-var,operator]
    if kind in ("f32", "f64"):
        if set(map(type, values)) != {float}:
            return False
        array = np.abs(np.array(values, dtype=np.float64))
        return kind == "f64" or not bool(np.any((array > np.finfo(np.float32).max) & (array != np.inf)))
    return set(map(type, values)) == {bool if kind == "bool" else str}
