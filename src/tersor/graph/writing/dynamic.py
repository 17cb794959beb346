"""Products whose inputs are rounded to the range of the batch at hand, found at run time.

Written as DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses into one operator; inputs have 8 bits
without sign, as the standard has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tersor.graph.net import Net
from tersor.graph.placement.sites import WEIGHT
from tersor.graph.weights import RoundedWeight
from tersor.graph.writing.stored import allow_halves, put_before, stored
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = LazyModule("onnx_ir", "onnx")

__all__ = ["round_at_run_time"]


def round_at_run_time(net: Net, products: Sequence[tuple[ir.Node, RoundedWeight]]) -> None:
    """Put MatMul operators with constant weights, in the order of the graph, on integers; readers of a value share its
    codes."""
    rounded: dict[ir.Value, ir.Node] = {}
    held: dict[int, tuple[ir.Value, ir.Value]] = {}
    decoders: dict[int, ir.Node] = {}
    for node, weight in products:
        source = node.inputs[0]
        assert source is not None, "a MatMul without an input"
        if source not in rounded:
            rounded[source] = _quantize(net, source)
            net.graph.insert_before(node, [rounded[source]])
        if weight.quantizer.scheme.block is not None:
            _decode(net, node, rounded[source], weight, decoders)
            continue
        if id(weight) not in held:
            old = str(node.inputs[1].name if node.inputs[1] is not None else node.name)
            codes = net.new_constant(f"{old}_quantized", weight.codes.astype(np.int8))
            held[id(weight)] = codes, net.new_constant(f"{old}_scale", weight.quantizer.scale)
        _multiply(net, node, rounded[source], *held[id(weight)])


def _decode(net: Net, node: ir.Node, quantize: ir.Node, weight: RoundedWeight, decoders: dict[int, ir.Node]) -> None:
    """Decode codes of activations and of weights before a product: the standard multiplies no groups of integers."""
    allow_halves(net)
    old = node.inputs[0]
    restore = ir.node("DequantizeLinear", quantize.outputs, name=net.free_name(f"{node.name}_dequantize"))
    values = restore.outputs[0]
    values.name, values.type = net.free_name(f"{node.name}_dequantized"), ir.TensorType(ir.DataType.FLOAT)
    values.shape = None if old is None else old.shape
    net.graph.insert_before(node, [restore])
    node.replace_input_with(0, values)
    if id(weight) not in decoders:
        matrix = node.inputs[WEIGHT]
        name = str(node.name if matrix is None else matrix.name)
        decoders[id(weight)] = stored(net, name, weight.codes, weight.quantizer, packed=True)
        put_before(net, node, WEIGHT, decoders[id(weight)])
    else:
        node.replace_input_with(WEIGHT, decoders[id(weight)].outputs[0])


def _quantize(net: Net, source: ir.Value) -> ir.Node:
    name = net.free_name(f"{source.name}_quantize")
    node = ir.node("DynamicQuantizeLinear", [source], name=name, num_outputs=3)
    kinds = (("quantized", ir.DataType.UINT8), ("scale", ir.DataType.FLOAT), ("zero_point", ir.DataType.UINT8))
    for value, (suffix, kind) in zip(node.outputs, kinds, strict=True):
        value.name, value.type = net.free_name(f"{source.name}_{suffix}"), ir.TensorType(kind)
    return node


def _multiply(net: Net, node: ir.Node, quantize: ir.Node, stored: ir.Value, step: ir.Value) -> None:
    codes, scale, zero = quantize.outputs

    def named(kind: str, inputs: Sequence[ir.Value], suffix: str, dtype: ir.DataType, **more: int) -> ir.Node:
        made = ir.node(kind, inputs, more, name=net.free_name(f"{node.name}_{suffix}"))
        made.outputs[0].name, made.outputs[0].type = net.free_name(str(made.name)), ir.TensorType(dtype)
        return made

    sums = named("MatMulInteger", [codes, stored, zero], "integers", ir.DataType.INT32)
    real = named("Cast", [sums.outputs[0]], "float", ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    steps = named("Mul", [scale, step], "steps", ir.DataType.FLOAT)
    net.replace(node, [sums, real, steps, ir.node("Mul", [real.outputs[0], steps.outputs[0]], name=str(node.name))])
