"""The float net that training starts from and returns to, and numbers put into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.graph.net import Array, Net
from tersor.graph.placement import WEIGHT
from tersor.graph.ptq import QuantizedNet
from tersor.graph.qdq import bias_place

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["put_biases", "put_weights", "start_of"]


def start_of(quantized: QuantizedNet) -> Net:
    """Return the float net with the biases that PTQ has corrected; the same names each time."""
    made = quantized.source.copy()
    put_biases(made, quantized.biases)
    return made


def put_weights(net: Net, weights: Mapping[str, Array]) -> None:
    """Give operators, by name, other weights."""
    nodes = {str(node.name): node for node in net.nodes}
    for name, values in weights.items():
        _put(net, nodes[name], WEIGHT, values, f"{name}_weight")


def put_biases(net: Net, biases: Mapping[str, Array]) -> None:
    """Give operators, by name, other biases, or their first."""
    nodes = {str(node.name): node for node in net.nodes}
    for name, values in biases.items():
        found = bias_place(nodes[name])
        if found is None:
            raise SchemeError(f"{name}: a MatMul without an Add of a constant behind it can have no bias")
        _put(net, *found, values, f"{name}_bias")


def _put(net: Net, node: ir.Node, place: int, values: Array, name: str) -> None:
    """Replace a constant under its name, unless others read it too: then under a new one."""
    value = node.inputs[place] if len(node.inputs) > place else None
    if value is not None and len(value.uses()) == 1 and str(value.name) in net.graph.initializers:
        net.set_constant(str(value.name), values)
        return
    if len(node.inputs) <= place:
        node.resize_inputs(place + 1)
    node.replace_input_with(place, net.new_constant(name, values))
