"""Which channels of a net have to keep one factor: a channel is followed through everything a factor passes through.

A positive factor of a channel passes through ReLU, pooling, sums and concatenations; an operator with weights ends it,
for its weights take the factor in. So the channels of all values of a residual stream are tied: what divides one has to
divide all. What a factor does not pass through (sigmoids, products, the caller of the net) fixes it at 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.graph.corrections.bias import bias_of
from tersor.graph.corrections.patches import channels_read, has_rows
from tersor.graph.net import Net, attribute, constant
from tersor.graph.placement.sites import WEIGHT, weight_axis

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["HOMOGENEOUS", "Channels", "channels_of"]

HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten")
"""What a positive factor of a channel passes through. A Clip is not: its bound would have to differ by channel."""
SUMS = ("Add", "Sub", "Sum")
AXIS = 1
"""That of channels: behind it come places."""

Ties: TypeAlias = npt.NDArray[np.int64]


class Channels:
    """Value → the tie of each of its channels; those of tie 0 have a factor of 1."""

    def __init__(self) -> None:
        self._above = [0]
        self._of: dict[str, Ties] = {}

    def of(self, value: ir.Value | str | None) -> Ties | None:
        """Return the tie of each channel, int64; None for a value whose channels are not known, which are fixed."""
        name = value if isinstance(value, str) or value is None else str(value.name)
        found = self._of.get(name or "")
        return None if found is None else np.array([self._root(int(tie)) for tie in found], np.int64)

    @property
    def count(self) -> int:
        """One more than the largest tie."""
        return len(self._above)

    def new(self, count: int) -> Ties:
        """Return channels that are tied to nothing."""
        start = len(self._above)
        self._above.extend(range(start, start + count))
        return np.arange(start, start + count)

    def set(self, value: ir.Value, ties: Ties | None) -> None:
        """Say what the channels of a value are."""
        if ties is not None:
            self._of[str(value.name)] = ties

    def tie(self, first: Ties, second: Ties) -> None:
        """Let channels have the same factors, one by one."""
        for left, right in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self._root(left), self._root(right)))
            self._above[high] = low

    def fix(self, value: ir.Value | None) -> None:
        """Let the channels of a value have a factor of 1."""
        ties = self.of(value)
        if ties is not None:
            self.tie(ties, np.zeros_like(ties))

    def _root(self, tie: int) -> int:
        while self._above[tie] != tie:
            self._above[tie] = self._above[self._above[tie]]
            tie = self._above[tie]
        return tie


def channels_of(net: Net) -> Channels:
    """Follow the channels of everything that operators with weights make, in the order of the graph."""
    known = Channels()
    outer = set(net.nodes)
    for node in net.nodes:
        made = _made(known, node)
        if made is None:
            for value in node.inputs:
                known.fix(value)
        elif not isinstance(made, bool):
            known.set(node.outputs[0], made)
        for place, value in enumerate(node.inputs):
            if place and node.op_type not in (*SUMS, "Concat"):
                known.fix(value)  # a weight or a slope that the net computes
    for value in net.values().values():
        if value.is_graph_output() or any(use.node not in outer for use in value.uses()):
            known.fix(value)
    return known


def _made(known: Channels, node: ir.Node) -> Ties | None:
    """Return the channels that an operator makes of those it reads; None: factors do not pass through it."""
    if has_rows(node) and node.op_type != "MatMul":
        return _of_weights(known, node)
    rule = _RULES.get(node.op_type)
    if rule is None or len([value for value in node.outputs if value.uses()]) > 1 or not node.inputs:
        return None
    return rule(known, node)


def _of_weights(known: Channels, node: ir.Node) -> Ties | None:
    """Return new channels; those that are read stay free, as far as the weight has one column for each."""
    weight = constant(node.inputs[WEIGHT])
    assert weight is not None, "has_rows"
    held = [value for value in node.inputs[WEIGHT:] if value is not None]
    if any(len(value.uses()) > 1 for value in held):
        return None  # each reader would need a weight of its own
    ties = known.of(node.inputs[0])
    if ties is not None and len(ties) != channels_read(node):
        known.fix(node.inputs[0])
    if len(held) > 1 and bias_of(node) is None:
        return None
    return known.new(weight.shape[weight_axis(node) or 0])


def _same(known: Channels, node: ir.Node) -> Ties | None:
    return known.of(node.inputs[0])


def _flat(known: Channels, node: ir.Node) -> Ties | None:
    """Return a channel once for each of its places: Flatten, and a Reshape to a matrix."""
    ties, shape, flat = known.of(node.inputs[0]), node.inputs[0].shape, node.outputs[0].shape  # type: ignore[union-attr]
    columns = None if flat is None or len(flat) != 2 else flat[AXIS]
    if ties is None or not isinstance(columns, int):
        return None
    if node.op_type == "Flatten" and attribute(node, "axis", 1) != AXIS:
        return None
    places = [] if shape is None else list(shape)[AXIS + 1 :]
    whole = all(isinstance(size, int) for size in places) and shape is not None
    if not whole or int(np.prod([1, *places])) * len(ties) != columns:
        return None
    return np.repeat(ties, columns // len(ties))


def _sum(known: Channels, node: ir.Node) -> Ties | None:
    every = [known.of(value) for value in node.inputs]
    ranks = {len(value.shape) if value is not None and value.shape is not None else -1 for value in node.inputs}
    first = every[0]
    if first is None or len(ranks) != 1 or -1 in ranks:
        return None
    for other in every[1:]:
        if other is None or len(other) != len(first):
            return None
    for other in every[1:]:
        known.tie(first, other)  # type: ignore[arg-type]  # looked at above
    return known.of(node.inputs[0])


def _concat(known: Channels, node: ir.Node) -> Ties | None:
    parts = [known.of(value) for value in node.inputs]
    if attribute(node, "axis", 0) != AXIS or any(part is None for part in parts):
        return None
    return np.concatenate([part for part in parts if part is not None])


def _mean(known: Channels, node: ir.Node) -> Ties | None:
    shape = node.inputs[0].shape  # type: ignore[union-attr]
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
    if shape is None or axes is None:
        return None
    read = {int(axis) % len(shape) for axis in np.asarray(axes).reshape(-1)}
    return None if read & {0, AXIS} else known.of(node.inputs[0])


def _slice(known: Channels, node: ir.Node) -> Ties | None:
    ties, shape = known.of(node.inputs[0]), node.inputs[0].shape  # type: ignore[union-attr]
    numbers = [constant(value) for value in node.inputs[1:]]
    if ties is None or shape is None or len(numbers) < 3 or any(part is None for part in numbers):
        return None
    starts, ends, axes, *steps = ([int(number) for number in part.reshape(-1)] for part in numbers if part is not None)
    for place, axis in enumerate(axes):
        if axis % len(shape) == AXIS:
            step = steps[0][place] if steps else 1
            if step < 1 or starts[place] < 0:
                return None
            ties = ties[starts[place] : ends[place] : step]
    return ties


def _pad(known: Channels, node: ir.Node) -> Ties | None:
    """Return the channels with new ones of nothing about them."""
    ties, pads = known.of(node.inputs[0]), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if ties is None or pads is None or len(node.inputs) > 3 or attribute(node, "mode", "constant") != "constant":
        return None
    value = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    rank = pads.size // 2
    before, after = int(pads[AXIS]), int(pads[rank + AXIS])
    if value is None or value.any() or (pads < 0).any():
        return None
    return np.concatenate([known.new(before), ties, known.new(after)])


_RULES = {
    **dict.fromkeys((*HOMOGENEOUS, "Identity"), _same),
    **dict.fromkeys(("Flatten", "Reshape"), _flat),
    **dict.fromkeys(SUMS, _sum),
    "Concat": _concat,
    "ReduceMean": _mean,
    "Slice": _slice,
    "Pad": _pad,
}
