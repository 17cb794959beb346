"""An operator with constant weights as a product of matrices: each place of the output reads one row of inputs.

The columns stand in the order of `weights.as_matrix`, so that output = rows · matrixᵀ + bias for every operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.graph.net import Array, attribute, constant
from tersor.graph.placement.sites import WEIGHT, weight_axis

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["channels_read", "columns_of", "groups_of", "has_rows", "input_rows", "same_pads", "spread"]

GOLDEN = (5**0.5 - 1) / 2


def has_rows(node: ir.Node) -> bool:
    """Whether an operator is such a product: not where its weight is a stack of matrices."""
    weight = constant(node.inputs[WEIGHT]) if len(node.inputs) > WEIGHT else None
    if weight is None:
        return False
    if node.op_type == "ConvTranspose":
        return bool(attribute(node, "group", 1) == 1 and "output_shape" not in node.attributes)
    return node.op_type == "Conv" or (node.op_type in ("Gemm", "MatMul") and weight.ndim == 2)


def groups_of(node: ir.Node) -> int:
    """How many parts of the channels go their own ways."""
    return int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1


def channels_read(node: ir.Node) -> int:
    """How many channels an operator reads."""
    weight = constant(node.inputs[WEIGHT])
    assert weight is not None, "has_rows says which operators have them"
    if node.op_type == "Conv":
        return int(weight.shape[1] * groups_of(node))
    return int(weight.shape[0 if node.op_type == "ConvTranspose" else 1 - (weight_axis(node) or 0)])


def columns_of(node: ir.Node) -> int:
    """How many inputs each output of an operator reads."""
    weight = constant(node.inputs[WEIGHT])
    assert weight is not None, "has_rows says which operators have them"
    axis = weight_axis(node)
    return int(weight.size // weight.shape[axis or 0])


def input_rows(node: ir.Node, values: Array, limit: int | None = None) -> Float32:
    """Return what the places of the output read, [groups, places, columns]; padding is read as zeros.

    values  the operator's first input
    limit   at most so many places, evenly spread; None: all
    """
    weight = constant(node.inputs[WEIGHT])
    assert weight is not None, "has_rows says which operators have them"
    if node.op_type in ("Gemm", "MatMul"):
        rows = values.reshape(-1, values.shape[-1])
        return np.asarray(rows[spread(len(rows), limit)][None], np.float32)
    size = weight.shape[2:]
    padded, strides, dilations = _prepared(node, values, size)
    reach = [dilation * (length - 1) + 1 for dilation, length in zip(dilations, size, strict=True)]
    axes = tuple(range(2, values.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    turn = -1 if node.op_type == "ConvTranspose" else 1
    steps = [1, 1, *strides, *(turn * dilation for dilation in dilations)]
    windows = windows[tuple(slice(None, None, step) for step in steps)]
    windows = np.moveaxis(windows, 1, len(size) + 1)  # [batch, places…, channels, window…]
    places = windows.shape[: len(size) + 1]
    chosen = windows[np.unravel_index(spread(int(np.prod(places)), limit), places)]
    groups = groups_of(node)
    grouped = chosen.reshape(len(chosen), groups, -1)
    return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)


def spread(count: int, limit: int | None) -> Array:
    """Return the places that are taken out of `count`, rising: one of each of `limit` equal stretches, all if None.

    Where in its stretch varies as multiples of the golden ratio do: fixed steps could meet one column of an image only.
    """
    if limit is None or count <= limit:
        return np.arange(count)
    steps = np.arange(limit)
    return ((steps + (steps * GOLDEN) % 1) * count / limit).astype(np.int64)


def _prepared(node: ir.Node, values: Array, size: tuple[int, ...]) -> tuple[Array, list[int], list[int]]:
    """Return the padded input of a convolution, and the strides and dilations with which windows are taken from it."""
    rank = len(size)
    strides = [int(step) for step in attribute(node, "strides", [1] * rank)]
    dilations = [int(step) for step in attribute(node, "dilations", [1] * rank)]
    is_conv = node.op_type == "Conv"
    reach = [dilation * (length - 1) + 1 for dilation, length in zip(dilations, size, strict=True)]
    over = values.shape[2:] if is_conv else strides  # of a transposed one "the same" is the input times the stride
    begin, end = same_pads(attribute(node, "auto_pad", "NOTSET"), attribute(node, "pads", None), over, reach, strides)
    pads = list(zip(begin, end, strict=True))
    if is_conv:
        return np.pad(values, [(0, 0), (0, 0), *pads]), strides, dilations
    extra = [int(number) for number in attribute(node, "output_padding", [0] * rank)]
    spaced = np.zeros((*values.shape[:2], *((n - 1) * s + 1 for n, s in zip(values.shape[2:], strides, strict=True))))
    spaced[(slice(None), slice(None), *(slice(None, None, step) for step in strides))] = values
    around = [(r - 1 - low, r - 1 - high + more) for r, (low, high), more in zip(reach, pads, extra, strict=True)]
    grown = np.pad(spaced, [(0, 0), (0, 0), *((max(low, 0), max(high, 0)) for low, high in around)])
    cuts = [slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(around, grown.shape[2:], strict=True)]
    return grown[(slice(None), slice(None), *cuts)], [1] * rank, dilations


def same_pads(
    auto_pad: str, pads: Sequence[int] | None, size: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding before and behind every spatial axis.

    size   of the input
    reach  of a window: (kernel - 1) · dilation + 1
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
