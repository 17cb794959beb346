"""The float net that training starts from and returns to, and numbers put into it."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.core.errors import SchemeError
from tersor.graph.net import Array, Net, operator
from tersor.graph.placement.sites import TABLE, WEIGHT
from tersor.graph.ptq import QuantizedNet
from tersor.graph.writing.qdq import bias_place

__all__ = ["put_biases", "put_weights", "start_of"]


def start_of(quantized: QuantizedNet, *, rounded: bool = False) -> Net:
    """Return the float net with the biases that PTQ has corrected; the same names each time.

    rounded  whether weights are those that PTQ rounded to: what its methods knew of their inputs is then not lost
    """
    made = quantized.source.copy()
    put_biases(made, quantized.biases)
    if rounded:
        put_weights(made, {name: weight.values for name, weight in {**quantized.weights, **quantized.tables}.items()})
    return made


def put_weights(net: Net, weights: Mapping[str, Array]) -> None:
    """Give operators, by name, other weights or tables."""
    nodes = {str(node.name): node for node in net.nodes}
    for name, values in weights.items():
        place = TABLE if operator(nodes[name]) == "Gather" else WEIGHT
        net.put_constant(nodes[name], place, values, f"{name}_weight")


def put_biases(net: Net, biases: Mapping[str, Array]) -> None:
    """Give operators, by name, other biases, or their first."""
    nodes = {str(node.name): node for node in net.nodes}
    for name, values in biases.items():
        found = bias_place(nodes[name])
        if found is None:
            raise SchemeError(f"{name}: a MatMul without an Add of a constant behind it can have no bias")
        net.put_constant(*found, values, f"{name}_bias")
