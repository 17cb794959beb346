"""The float net that training starts from and returns to, and numbers put into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tersor.core.errors import SchemeError
from tersor.graph.net import Array, Net, operator
from tersor.graph.placement.sites import TABLE, WEIGHT
from tersor.graph.ptq import QuantizedNet
from tersor.graph.writing.qdq import bias_place

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["put_biases", "put_weights", "start_of"]


def start_of(quantized: QuantizedNet, *, rounded: bool = False) -> Net:
    """Return the float net with the biases that PTQ has corrected; the same names each time.

    rounded  whether weights are those that PTQ rounded to: what its methods knew of their inputs is then not lost
    """
    made = quantized.source.copy()
    put_biases(made, quantized.biases)
    if rounded:
        stored = {**quantized.weights, **quantized.tables}
        values = {id(weight): weight.values for weight in stored.values()}
        put_weights(made, {name: values[id(weight)] for name, weight in stored.items()})
    return made


def put_weights(net: Net, weights: Mapping[str, Array]) -> None:
    """Give operators, by name, other weights or tables; those that share one still do, where all get the same array."""
    nodes = {str(node.name): node for node in net.nodes}
    sharing: dict[tuple[ir.Value | None, int], list[tuple[ir.Node, int]]] = {}
    for name, values in weights.items():
        place = TABLE if operator(nodes[name]) == "Gather" else WEIGHT
        sharing.setdefault((nodes[name].inputs[place], id(values)), []).append((nodes[name], place))
    for (first, place), *others in sharing.values():
        name = str(first.name)
        net.put_constant(first, place, weights[name], f"{name}_weight", readers=1 + len(others))
        for node, where in others:
            node.replace_input_with(where, first.inputs[place])


def put_biases(net: Net, biases: Mapping[str, Array]) -> None:
    """Give operators, by name, other biases, or their first."""
    nodes = {str(node.name): node for node in net.nodes}
    for name, values in biases.items():
        found = bias_place(nodes[name])
        if found is None:
            raise SchemeError(f"{name}: a MatMul without an Add of a constant behind it can have no bias")
        net.put_constant(*found, values, f"{name}_bias")
