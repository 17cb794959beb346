"""What operators share: integers that may be tensors, types of elements, paddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tersor.graph.corrections.patches import same_pads
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["RANGES", "Ints", "Number", "Window", "integers", "interleaved", "torch_type", "window_over"]

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


class Window(NamedTuple):
    """How a window goes over the spatial axes of an input, a number for each; `reach` is (kernel - 1) · dilation + 1.

    begin, end  padding before and behind
    """

    strides: list[int]
    dilations: list[int]
    reach: list[int]
    begin: list[int]
    end: list[int]


def window_over(
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    pads: Sequence[int] | None,
) -> Window:
    """Return the window that an operator's attributes describe on an input of that size; None stands for ones."""
    steps, spread = list(strides or [1] * len(kernel)), list(dilations or [1] * len(kernel))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    return Window(steps, spread, reach, *same_pads(auto_pad, pads, size, reach, steps))
