"""What one operator of a net has to do: multiply-adds and bytes, counted, not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["KINDS", "OperatorWork", "WorkKind"]

WorkKind: TypeAlias = Literal[
    "convolution", "stem", "pointwise", "depthwise", "linear", "product", "function", "pool", "move"
]
KINDS: tuple[WorkKind, ...] = (
    *("convolution", "stem", "pointwise", "depthwise", "linear", "product", "function", "pool", "move"),
)
"""Convolutions of windows, of windows over few channels, of single places, of each channel alone; products with a
matrix of weights, and of two activations; functions of values; windows without weights; what only moves numbers."""


@dataclass(frozen=True, slots=True)
class OperatorWork:
    """An operator, for one call of the net.

    operator       of the ONNX standard
    arithmetic     "float32", "float16", or "int8" where sums are of integers
    macs           multiply-adds
    weight_bytes   of its weights and biases, without scales
    read_bytes     of activations
    written_bytes  of activations
    fused          whether an engine computes it within the operator before it
    """

    name: str
    operator: str
    kind: WorkKind
    arithmetic: str
    macs: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    fused: bool = False
