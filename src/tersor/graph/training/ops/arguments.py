"""What operators share: integers that may be tensors, types of elements, paddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["RANGES", "Ints", "Number", "integers", "interleaved", "same_pads", "torch_type"]

Ints: TypeAlias = "Sequence[int] | int | Tensor"
Number: TypeAlias = "float | int | Tensor"

_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "int32", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "int64", 13: "int64", 16: "bfloat16", 21: "uint8", 22: "int8",
}  # fmt: skip
"""ONNX's number of an element type → the torch type that holds its values: unsigned ones may need the next wider."""

RANGES = {
    2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(1 << 31), (1 << 31) - 1),
    21: (0, 15), 22: (-8, 7),
}  # fmt: skip
"""ONNX's number of an integer type → its lowest and highest value."""


def torch_type(number: int) -> torch.dtype | None:
    """Return the torch type of an ONNX element type; None where torch has none for its values."""
    name = _NAMES.get(number)
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found


def integers(values: Ints) -> list[int]:
    """Return the numbers of a shape, axes or the like, wherever they come from; a single one as a list of one."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    return [values] if isinstance(values, int) else list(values)


def interleaved(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return what torch's pad wants: (begin, end) of the last axis first."""
    return [amount for pair in zip(reversed(begins), reversed(ends), strict=True) for amount in pair]


def same_pads(
    auto_pad: str, pads: Sequence[int] | None, size: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding before and behind every spatial axis.

    size   of the input
    reach  of a window: (kernel - 1) * dilation + 1
    """
    if auto_pad in ("NOTSET", "VALID", ""):
        given = list(pads) if pads and auto_pad != "VALID" else [0] * (2 * len(size))
        return given[: len(size)], given[len(size) :]
    total = [
        max((math.ceil(n / step) - 1) * step + window - n, 0)
        for n, window, step in zip(size, reach, strides, strict=True)
    ]
    less, more = [n // 2 for n in total], [n - n // 2 for n in total]
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)
