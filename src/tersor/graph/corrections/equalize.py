"""Cross-layer equalization: weights that follow one another share their range, channel by channel.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1. A rewrite: the function of the net stays.
Differs: pairs are found in the graph, through depthwise operators and whatever commutes with a positive factor; where
the largest activations are known, a channel's factor balances those against the weights that read them instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.errors import SchemeError
from tersor.graph.corrections.bias import bias_of
from tersor.graph.corrections.channels import HOMOGENEOUS
from tersor.graph.corrections.patches import channels_read, groups_of, has_rows
from tersor.graph.net import Array, Net, attribute, beside, constant
from tersor.graph.placement.sites import WEIGHT, weight_axis
from tersor.graph.weights import as_matrix
from tersor.graph.writing.qdq import bias_place

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Pair", "equalized", "pairs_of", "scale"]

ELEMENTWISE = {"Relu", "LeakyRelu", "PRelu", "Flatten"}
"""Of HOMOGENEOUS what leaves the last axis alone. (A Flatten of more than rows has other columns.)"""
ROUNDS = 20
CONVERGED = 1e-3
LIMIT = 1e3
"""Of a factor, either way: weights of nothing would ask for infinite ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two operators with weights, of which the second alone reads what the first makes; `value` is what it reads."""

    first: ir.Node
    second: ir.Node
    value: str


def equalized(net: Net, *, largest: Mapping[str, Array] | None = None, strength: float = 0.5) -> Net:
    """Return a net of the same function whose weights are equalized.

    largest   value → largest magnitude of each of its channels on calibration data; pairs that read others are left
    strength  with `largest`: share of the difficulty that moves into the weights, 0 … 1
    Outputs stay within the rounding of float32: each weight is multiplied by one factor, rounded once a round.
    """
    if not 0 <= strength <= 1:
        raise SchemeError(f"equalization needs a strength between 0 and 1, got {strength}")
    made = net.copy()
    pairs = [pair for pair in pairs_of(made) if largest is None or pair.value in largest]
    for _ in range(ROUNDS if largest is None else 1):
        off = 0.0
        for pair in pairs:
            known = None if largest is None else largest[pair.value]
            factors = _factors(pair, known, strength)
            off = max(off, float(np.abs(np.log(factors)).max()))
            scale(made, pair.first, makes=factors)
            scale(made, pair.second, reads=factors)
        if off < CONVERGED:
            break
    return made


def pairs_of(net: Net) -> Iterator[Pair]:
    """Yield the pairs of a net, in the order of the graph."""
    for first in net.nodes:
        if not has_rows(first) or (bias_of(first) is None and first.op_type != "MatMul"):
            continue
        value = first.outputs[0]
        if first.op_type == "MatMul":
            found = bias_place(first)
            value = value if found is None else found[0].outputs[0]
        second, between = _reader(value)
        if second is not None and _fits(first, second, between) and not _is_shared(first, second):
            yield Pair(first, second, str(second.inputs[0].name))  # type: ignore[union-attr]


def _reader(value: ir.Value) -> tuple[ir.Node | None, set[str]]:
    """Return the operator with weights that alone reads a value, and what is between: a factor passes through it."""
    between: set[str] = set()
    while len(value.uses()) == 1 and not value.is_graph_output():
        use = next(iter(value.uses()))
        node = use.node
        if use.idx == 0 and has_rows(node):
            return node, between
        flat = node.op_type != "Flatten" or attribute(node, "axis", 1) == 1
        if use.idx or node.op_type not in HOMOGENEOUS or not flat or len(node.outputs) > 1:
            break
        between.add(node.op_type)
        value = node.outputs[0]
    return None, between


def _fits(first: ir.Node, second: ir.Node, between: set[str]) -> bool:
    """Whether the outputs of the first are the channels of the second, each once or in a row of places.

    Channels of a convolution are the second axis, those of a matrix the last: a matrix reads the former only where they
    are flat, and pooling, which goes along the last, mixes the latter.
    """
    weight = constant(first.inputs[WEIGHT])
    assert weight is not None, "has_rows"
    channels, columns = weight.shape[weight_axis(first) or 0], channels_read(second)
    images, reads_images = (node.op_type in ("Conv", "ConvTranspose") for node in (first, second))
    if reads_images:
        return images and channels == columns
    if images:
        return "Flatten" in between and columns % channels == 0
    return channels == columns and between <= ELEMENTWISE


def _is_shared(first: ir.Node, second: ir.Node) -> bool:
    """Whether others read what would be scaled: each would need a copy of its own."""
    found = bias_place(first)
    held = [first.inputs[WEIGHT], second.inputs[WEIGHT]]
    if found is not None and len(found[0].inputs) > found[1]:
        held.append(found[0].inputs[found[1]])
    return any(value is not None and (len(value.uses()) > 1 or value.is_graph_output()) for value in held)


def _factors(pair: Pair, largest: Array | None, strength: float) -> Array:
    """Return what each channel between the two is divided by, float64."""
    weight = constant(pair.first.inputs[WEIGHT])
    assert weight is not None, "has_rows"
    reads = np.abs(_columns(pair.second)).max(axis=1)
    makes = np.abs(as_matrix(weight, weight_axis(pair.first))).max(axis=1)
    reads = reads.reshape(len(makes), -1).max(axis=1)
    if largest is None:
        alive = (makes > 0) & (reads > 0)
        ratio = np.sqrt(np.where(alive, makes, 1) / np.where(alive, reads, 1))
    else:
        seen = largest.reshape(len(makes), -1).max(axis=1)
        alive = (makes > 0) & (reads > 0) & (seen > 0)
        ratio = np.where(alive, seen, 1) ** strength / np.where(alive, reads, 1) ** (1 - strength)
        ratio = np.where(alive, ratio / np.exp(np.log(ratio[alive]).mean()) if alive.any() else 1.0, 1.0)
    return np.asarray(np.clip(ratio, 1 / LIMIT, LIMIT), np.float64)


def _columns(node: ir.Node) -> Array:
    """Return what an operator multiplies each of its channels with, [channels, all else]."""
    weight = constant(node.inputs[WEIGHT])
    assert weight is not None, "has_rows"
    if node.op_type == "Conv":
        groups = groups_of(node)
        parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return parts.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)
    axis = 0 if node.op_type == "ConvTranspose" else 1 - (weight_axis(node) or 0)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def scale(net: Net, node: ir.Node, *, reads: Array | None = None, makes: Array | None = None) -> None:
    """Multiply what an operator reads by `reads` and divide what it makes by `makes`, each one factor a channel.

    A channel that is read in several places in a row (behind a Flatten) has one factor for all of them.
    """
    weight = constant(node.inputs[WEIGHT])
    assert weight is not None, "has_rows"
    if makes is not None:
        _multiply(net, node, WEIGHT, beside(1 / makes, weight_axis(node) or 0, weight.ndim))
        found = bias_place(node)
        if found is not None and len(found[0].inputs) > found[1] and found[0].inputs[found[1]] is not None:
            _multiply(net, found[0], found[1], 1 / makes)
    if reads is None:
        return
    each = np.repeat(reads, channels_read(node) // len(reads))
    if node.op_type == "Conv":
        groups = groups_of(node)
        rows = np.repeat(each.reshape(groups, weight.shape[1]), len(weight) // groups, axis=0)
        _multiply(net, node, WEIGHT, rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))
        return
    place = 0 if node.op_type == "ConvTranspose" else 1 - (weight_axis(node) or 0)
    _multiply(net, node, WEIGHT, beside(each, place, weight.ndim))


def _multiply(net: Net, node: ir.Node, place: int, factors: Array) -> None:
    """Multiply a constant of an operator; others that read it keep what they have."""
    value = node.inputs[place]
    numbers = constant(value)
    assert value is not None, "a pair has constants"
    assert numbers is not None, "a pair has constants"
    net.put_constant(node, place, (numbers * factors).astype(numbers.dtype), str(value.name))
