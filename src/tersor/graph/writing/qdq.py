"""Write quantizers into a graph as QuantizeLinear and DequantizeLinear: the portable form of a net on integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.errors import SchemeError
from tersor.graph.net import Array, Net, constant, operator
from tersor.graph.placement.sites import BIAS, WEIGHT, Placement, Site
from tersor.graph.scheme import Quantizer
from tersor.graph.weights import RoundedWeight
from tersor.graph.writing.dynamic import round_at_run_time
from tersor.graph.writing.stored import allow_halves, axis_of, is_packed, parameters, put_before, stored, unpacks
from tersor.graph.writing.tables import Held, take_rows
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx_ir.passes import common as passes
else:
    ir, passes = LazyModule("onnx_ir", "onnx"), LazyModule("onnx_ir.passes.common", "onnx")

__all__ = ["bias_place", "with_quantizers"]

BIAS_LIMIT = (1 << 31) - 1
EVERYTHING = (-np.inf, np.inf)


def with_quantizers(
    net: Net,
    placement: Placement,
    activations: Mapping[str, Quantizer],
    weights: Mapping[str, RoundedWeight],
    biases: Mapping[str, Array] | None = None,
    *,
    tables: Mapping[str, RoundedWeight] | None = None,
) -> Net:
    """Return the net on integers.

    activations  value → quantizer, of every site of the placement
    weights      node → its rounded weight
    biases       node → a bias to put in the place of its own, float32
    tables       Gather → its rounded table
    Weights are stored as integers, and biases as int32 where the engine reads them so.
    """
    made = net.copy()
    nodes = {str(node.name): node for node in made.nodes}
    values = made.values()
    for node, bias in (biases or {}).items():
        _set_bias(made, nodes[node], bias)
    decoded: dict[ir.Value | None, Quantizer] = {}
    for name, site in placement.activations.items():
        decoded[_round_activation(made, values[name], site, activations[name], nodes)] = activations[name]
    held: Held = {}
    for name in placement.tables:
        take_rows(made, nodes[name], (tables or {})[name], held)
    if placement.precision.activations == "dynamic":
        round_at_run_time(made, [(nodes[name], weights[name]) for name in placement.weights])
    else:
        _store_weights(made, placement, nodes, decoded, weights)
    passes.RemoveUnusedNodesPass()(made.model)
    return made


def _store_weights(
    net: Net,
    placement: Placement,
    nodes: Mapping[str, ir.Node],
    decoded: Mapping[ir.Value | None, Quantizer],
    weights: Mapping[str, RoundedWeight],
) -> None:
    """Put integers, and what decodes them, in the place of weights and biases; `decoded` are rounded activations."""
    is_alone = placement.precision.activations == "float"
    unpacked = unpacks(placement, net)
    if (is_alone or unpacked) and any(is_packed(weight.quantizer.scheme) for weight in weights.values()):
        allow_halves(net)
    decoders: dict[int, ir.Node] = {}  # a weight that several operators share is stored once
    for name, site in placement.weights.items():
        weight, node = weights[name], nodes[name]
        decoder = decoders.get(id(weight))
        if decoder is None:
            decoder = stored(net, site.value, weight.codes, weight.quantizer, packed=is_alone, unpacked=unpacked)
            decoders[id(weight)] = decoder
            put_before(net, node, WEIGHT, decoder)
        else:
            node.replace_input_with(WEIGHT, decoder.outputs[0])
        source = decoded.get(node.inputs[0])
        if placement.engine.rounds_bias and source is not None:
            _round_bias(net, node, source, weight.quantizer)


def _round_activation(
    net: Net, value: ir.Value, site: Site, quantizer: Quantizer, nodes: Mapping[str, ir.Node]
) -> ir.Value:
    """Let the readers of a value read it rounded, and the caller too where only operators on integers make it.

    Returns what they read.
    """
    name = str(value.name)
    scale, zero = parameters(net, name, quantizer)
    quantize = ir.node(
        "QuantizeLinear", [value, scale, zero], axis_of(quantizer), name=net.free_name(f"{name}_quantize")
    )
    codes = quantize.outputs[0]
    codes.name, codes.shape, codes.type = net.free_name(f"{name}_quantized"), value.shape, zero.type
    called = net.free_name(f"{name}_dequantize")
    restore = ir.node("DequantizeLinear", [codes, scale, zero], axis_of(quantizer), name=called)
    values = restore.outputs[0]
    values.name, values.shape, values.type = net.free_name(f"{name}_dequantized"), value.shape, value.type
    net.insert_behind(value, [quantize, restore])
    taking = {nodes[node] for node in site.nodes}
    for use in list(value.uses()):
        if use.node in taking:
            use.node.replace_input_with(use.idx, values)
    if site.returned:
        for place, returned in enumerate(net.graph.outputs):
            if returned is value:
                net.graph.outputs[place] = values
        value.name, values.name = net.free_name(f"{name}_unrounded"), name
    quantize.replace_input_with(0, _without_clips(value, quantizer))
    return values


def _without_clips(value: ir.Value, quantizer: Quantizer) -> ir.Value:
    """Return what is rounded to the very same codes before a Relu or Clip as behind it, where nobody else reads it.

    Saturation does their work: engines then need to fuse nothing into the operator before.
    """
    while True:
        node = value.producer()
        if node is None or value.is_graph_output() or len(value.uses()) > 1 or quantizer.scheme.axis is not None:
            return value
        bounds = _bounds(node)
        source = node.inputs[0] if bounds is not None else None
        if source is None or bounds is None:
            return value
        codes = quantizer.codes(np.asarray(bounds, np.float32))
        if (int(codes[0]), int(codes[1])) != (quantizer.scheme.lowest, quantizer.scheme.highest):
            return value
        value = source


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return what a Relu or Clip cuts off at; None for other operators, and where that is computed."""
    if operator(node) == "Relu":
        return 0.0, np.inf
    if operator(node) != "Clip":
        return None
    given = [*node.inputs[1:3], None, None][:2]
    numbers = [constant(value) for value in given]
    if any(value is not None and number is None for value, number in zip(given, numbers, strict=True)):
        return None
    low, high = (
        default if number is None else float(number) for number, default in zip(numbers, EVERYTHING, strict=True)
    )
    return None if np.isnan(low) or np.isnan(high) else (low, high)


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the operator and input that hold the bias of `node`; of a MatMul, the Add behind it, None without one."""
    if node.op_type != "MatMul":
        return node, BIAS
    made = node.outputs[0]
    if len(made.uses()) != 1 or made.is_graph_output():
        return None
    use = next(iter(made.uses()))
    if use.node.op_type != "Add":
        return None
    weight, bias = constant(node.inputs[WEIGHT]), constant(use.node.inputs[1 - use.idx])
    fits = weight is not None and bias is not None and bias.shape == weight.shape[1:]
    return (use.node, 1 - use.idx) if fits else None


def _set_bias(net: Net, node: ir.Node, bias: Array) -> None:
    found = bias_place(node)
    if found is None:
        raise SchemeError(f"{node.name}: a MatMul without an Add of a constant behind it can have no bias")
    holder, place = found
    if len(holder.inputs) <= place:
        holder.resize_inputs(place + 1)
    holder.replace_input_with(place, net.new_constant(f"{node.name}_bias", bias.astype(np.float32)))


def _round_bias(net: Net, node: ir.Node, source: Quantizer, weight: Quantizer) -> None:
    """Store a bias as int32 on the grid of the sums that it is added to: scale of input times scale of weight."""
    bias = constant(node.inputs[BIAS]) if len(node.inputs) > BIAS else None
    if bias is None or bias.ndim != 1 or weight.scheme.axis is None:
        return
    scale = (source.scale * weight.scale).astype(np.float32)
    if not (scale > 0).all():
        return  # the product of the scales is too small to divide by: the bias stays in float
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    if not (np.abs(codes) <= BIAS_LIMIT).all():
        return
    quantizer = Quantizer(scale, np.zeros(scale.shape, np.int32), replace(weight.scheme, axis=0))
    put_before(net, node, BIAS, stored(net, f"{node.name}_bias", codes.astype(np.int32), quantizer))
