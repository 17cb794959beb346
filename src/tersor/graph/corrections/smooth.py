"""Inputs of linear layers divided by column before they are rounded, by the error of what comes out.

Source: SmoothQuant, Xiao et al. 2022, arXiv:2211.10438. A rewrite: the function of the net stays.
Differs: the strength is searched for each input, by the error of the outputs of all that read it, inputs and weights
rounded. Each half of the data is judged by ranges of the other: columns that all reach to the end of one range go
beyond it on what was not seen, and ranges that know the rows would not tell. Factors go into the norm before where
nobody else reads it (there is then no operator more), else into a Mul: in a net with norms behind its sums, others
read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.graph.corrections.channels import HOMOGENEOUS
from tersor.graph.corrections.patches import spread
from tersor.graph.net import Array, Net, constant
from tersor.graph.observe import Progress
from tersor.graph.placement.sites import WEIGHT, Placement, weight_axis
from tersor.graph.scheme import Quantizer, Scheme
from tersor.graph.sessions import Feeds, Session
from tersor.graph.weights import as_matrix
from tersor.kernels.lazy import LazyModule
from tersor.methods.rewrites.smoothquant import input_scales

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
else:
    torch, ir = LazyModule("torch", "torch"), LazyModule("onnx_ir", "onnx")

__all__ = ["Half", "Smoothed", "Smoothing", "Stream", "sampled", "smooth", "smoothed", "smoothing", "streams"]

ROWS = 512
"""Rows of an input that errors are measured on, over all batches."""
STRENGTHS = (0.5, 0.65, 0.8, 0.9)
WORTH = 0.8
"""Factors that leave more than this share of the squared error are not worth an operator."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A value that linear layers on integers read, and their names."""

    value: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """What half of the data makes of a stream.

    rows      [rows, columns], some of them
    extremes  [2, columns]: least and largest of each column, over all rows
    """

    rows: Float32
    extremes: Float32


@dataclass(frozen=True, slots=True, eq=False)
class Smoothing:
    """What was found for a stream.

    factors  float32 [columns] that the input is divided by; None: by nothing
    error    squared error of the outputs, as a share of their square, of each half of the data by the other's ranges
    plain    that of an input divided by nothing
    """

    factors: Float32 | None
    strength: float
    error: float
    plain: float


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A net with its factors in place.

    ranges  value → (low, high) of all that was seen, by the names in `net`: outliers of linear layers' inputs carry
            what later ones need, and sentences of another kind go beyond what was seen
    """

    net: Net
    ranges: Mapping[str, tuple[float, float]]
    found: Mapping[Stream, Smoothing]


def smooth(
    net: Net,
    placement: Placement,
    batches: Sequence[Feeds],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Smoothed:
    """Search every stream of a net, and divide those that gain."""
    every = list(streams(net, placement))
    seen = sampled(net, batches, [stream.value for stream in every], threads=threads) if every else {}
    found = {}
    for place, stream in enumerate(every):
        site = placement.activations[stream.value]
        bits = placement.weights[stream.nodes[0]].scheme.bits
        found[stream] = smoothing(seen[stream.value], _matrices(net, stream), site.scheme, bits)
        if progress is not None:
            progress("smoothing", place + 1, len(every))
    made, renamed = smoothed(net, found)
    ranges = {}
    for stream, one in found.items():
        ends = _together(seen[stream.value]) / (1 if one.factors is None else one.factors)
        ranges[renamed.get(stream.value, stream.value)] = (float(ends.min()), float(ends.max()))
    return Smoothed(made, ranges, found)


def streams(net: Net, placement: Placement) -> Iterator[Stream]:
    """Yield what MatMul and Gemm with constant matrices read on integers, where operators in float make it.

    Between operators on integers a Mul would take codes apart; `equalize` knows those pairs.
    """
    readers: dict[str, list[ir.Node]] = {}
    shared = Counter(site.group for site in placement.activations.values())
    for node in net.nodes:
        weight = constant(node.inputs[WEIGHT]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is not None and weight.ndim == 2 and str(node.name) in placement.weights:
            readers.setdefault(str(node.inputs[0].name), []).append(node)  # type: ignore[union-attr]
    for value, nodes in readers.items():
        if any(_is_shared(node, nodes) for node in nodes):
            continue  # factors would make a weight of its own for each reader
        made_by = net.value(value).producer()
        if made_by is None or str(made_by.name) in placement.integer or made_by.op_type in HOMOGENEOUS:
            continue
        if shared[placement.activations[value].group] == 1:
            yield Stream(value, tuple(str(node.name) for node in nodes))


def _is_shared(node: ir.Node, readers: Sequence[ir.Node]) -> bool:
    """Whether the weight of an operator is read by others than these, or by the caller."""
    weight = node.inputs[WEIGHT]
    assert weight is not None, "a stream's reader has a weight"
    return weight.is_graph_output() or any(use.node not in readers for use in weight.uses())


def sampled(
    net: Net,
    batches: Sequence[Feeds],
    values: Sequence[str],
    *,
    rows: int = ROWS,
    threads: int = 0,
) -> dict[str, tuple[Half, Half]]:
    """Return what each half of the data makes of each value: every second batch, or half of the rows of a single one.

    rows  of both halves together, evenly from all batches
    """
    session = Session(net, [name for name in values if name not in {str(v.name) for v in net.inputs}], threads=threads)
    is_single = len(batches) == 1
    each = -(-rows // (2 if is_single else len(batches)))
    found: dict[str, tuple[list[Half], list[Half]]] = {name: ([], []) for name in values}
    for number, feeds in enumerate(batches):
        made = {**session.run(feeds), **feeds}
        for name in values:
            flat = np.asarray(made[name], np.float32).reshape(-1, made[name].shape[-1])
            parts = np.array_split(flat, 2) if is_single else [flat]
            for place, part in enumerate(parts, number):
                if len(part):
                    ends = np.stack([part.min(axis=0), part.max(axis=0)])
                    found[name][place % 2].append(Half(part[spread(len(part), each)], ends))
    return {name: _halves(*parts) for name, parts in found.items()}


def _halves(first: list[Half], second: list[Half]) -> tuple[Half, Half]:
    """Join the parts of each half; where there is one row in all, both halves are that."""
    one, other = (
        Half(np.concatenate([part.rows for part in parts]), _together(parts)) for parts in (first, second or first)
    )
    return one, other


def _together(parts: Sequence[Half]) -> Float32:
    """Return the extremes of all."""
    return np.stack(
        [
            np.min([part.extremes[0] for part in parts], axis=0),
            np.max([part.extremes[1] for part in parts], axis=0),
        ]
    )


def smoothing(halves: tuple[Half, Half], matrices: Sequence[Float32], scheme: Scheme, bits: int = 8) -> Smoothing:
    """Return the factors with which the outputs of `matrices` are best, all codes spread over the whole range.

    halves    of the data, each judged by the factors and ranges of the other
    matrices  [outputs, columns] each; rounded to `bits` here by their largest weight
    scheme    of the input
    """
    matrix = np.concatenate(matrices)
    pairs = (halves, halves[::-1])
    energy = sum(float(np.square(half.rows @ matrix.T, dtype=np.float64).sum()) for half in halves)
    energy = max(energy, np.finfo(np.float64).tiny)
    best: Smoothing | None = None
    for strength in (0.0, *STRENGTHS):
        squares = 0.0
        for known, other in pairs:
            factors = _factors(matrix, known.extremes, strength)
            ends = known.extremes / factors
            quantizer = Quantizer.of_range(float(ends.min()), float(ends.max()), scheme)
            made = quantizer.values(quantizer.codes(other.rows / factors)) @ _rounded_rows(matrix * factors, bits).T
            squares += float(np.square(made - other.rows @ matrix.T, dtype=np.float64).sum())
        error = squares / energy
        if best is None:
            best = Smoothing(None, strength, error, error)
        elif error < best.error * (1.0 if best.strength else WORTH):
            best = Smoothing(_factors(matrix, _together(halves), strength), strength, error, best.plain)
    assert best is not None, "nothing tried"
    return best


def _factors(matrix: Float32, extremes: Float32, strength: float) -> Float32:
    """Return what columns are divided by, whose geometric mean is 1; ones at a strength of 0."""
    if not strength:
        return np.ones(matrix.shape[1], np.float32)
    largest = np.ascontiguousarray(np.abs(extremes).max(axis=0))
    scales = input_scales([torch.from_numpy(matrix)], largest_input=torch.from_numpy(largest), strength=strength)
    found: Float32 = scales.numpy()
    return np.asarray(found / np.exp(np.log(found).mean()), np.float32)


def _rounded_rows(matrix: Float32, bits: int) -> Float32:
    top = (1 << (bits - 1)) - 1
    scale = np.maximum(np.abs(matrix).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / top
    return np.asarray(np.rint(matrix / scale) * scale, np.float32)


def smoothed(net: Net, found: Mapping[Stream, Smoothing]) -> tuple[Net, dict[str, str]]:
    """Return the net with its factors in place, and value → value that the layers read now, where that is another.

    Outputs stay within the rounding of float32: each weight and each input is multiplied once.
    """
    made = net.copy()
    nodes, renamed = {str(node.name): node for node in made.nodes}, {}
    for stream, one in found.items():
        if one.factors is None:
            continue
        readers = [nodes[name] for name in stream.nodes]
        for node in readers:
            _multiply(made, node, one.factors)
        value = made.values()[stream.value]
        if not _into_norm(made, value, readers, one.factors):
            renamed[stream.value] = _insert(made, value, readers, one.factors)
    return made, renamed


def _multiply(net: Net, node: ir.Node, factors: Float32) -> None:
    """Multiply the columns of a layer, in a constant of its own."""
    value = node.inputs[WEIGHT]
    weight = constant(value)
    assert value is not None, "a stream's reader has a weight"
    assert weight is not None, "a stream's reader has a weight"
    along = factors[:, None] if weight_axis(node) == 1 else factors[None]
    net.put_constant(node, WEIGHT, (weight * along).astype(weight.dtype), str(value.name))


def _into_norm(net: Net, value: ir.Value, readers: Sequence[ir.Node], factors: Float32) -> bool:
    """Divide what a norm makes by its own constants, where only `readers` read it."""
    norm = value.producer()
    if norm is None or norm.op_type != "LayerNormalization" or value.is_graph_output():
        return False
    if any(use.node not in readers or use.idx for use in value.uses()):
        return False
    numbers = [constant(part) for part in norm.inputs[1:3]]
    if any(part is None or part.shape != factors.shape for part in numbers):
        return False
    for place, part in enumerate(numbers, 1):
        assert part is not None, "seen above"
        held = norm.inputs[place]
        assert held is not None, "seen above"
        net.put_constant(norm, place, (part / factors).astype(part.dtype), str(held.name))
    return True


def _insert(net: Net, value: ir.Value, readers: Sequence[ir.Node], factors: Array) -> str:
    """Let the readers read the value divided by the factors; return its name."""
    name = f"{value.name}_smoothed"
    node = ir.node("Mul", [value, net.new_constant(f"{name}_factors", (1 / factors).astype(np.float32))], name=name)
    made = node.outputs[0]
    made.name, made.shape, made.type = name, value.shape, value.type
    net.insert_behind(value, [node])
    for reader in readers:
        reader.replace_input_with(0, made)
    return name


def _matrices(net: Net, stream: Stream) -> list[Float32]:
    """Return the matrices of a stream's readers, [outputs, columns]."""
    nodes = {str(node.name): node for node in net.nodes}
    found = []
    for name in stream.nodes:
        weight = constant(nodes[name].inputs[WEIGHT])
        assert weight is not None, "a stream's reader has a weight"
        found.append(as_matrix(weight, weight_axis(nodes[name])))
    return found
