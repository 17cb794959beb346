"""The same quantized net with other operators left in float or at 8 bits: nothing is observed again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from tersor.graph.net import constant
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import WEIGHT
from tersor.graph.ptq import QuantizedNet
from tersor.graph.weights import RoundedWeight, rounded_weight
from tersor.graph.writing.qdq import with_quantizers

__all__ = ["with_left"]


def with_left(
    quantized: QuantizedNet, left: Collection[str] | None = None, *, wide: Collection[str] | None = None
) -> QuantizedNet:
    """Return `quantized` with the operators of `left`, and no others, in float beside those that must be.

    wide  operators, these and no others, whose weights have 8 bits; rounded to nearest where they had fewer
    None leaves either as it is.
    """
    recipe = quantized.recipe
    recipe = recipe if left is None else replace(recipe, left=tuple(sorted(left)))
    recipe = recipe if wide is None else replace(recipe, wide=tuple(sorted(wide)))
    placement = place(quantized.source, quantized.placement.engine, recipe.precision, left=recipe.left)
    activations = {name: quantized.activations[name] for name in placement.activations}
    nodes = {str(node.name): node for node in quantized.source.nodes}
    weights: dict[str, RoundedWeight] = {}
    for name, site in placement.weights.items():
        weights[name] = quantized.weights[name]
        if weights[name].quantizer.scheme != site.scheme:
            weight = constant(nodes[name].inputs[WEIGHT])
            assert weight is not None, "a weight site without a constant"
            weights[name] = rounded_weight(weight, site)
    # what a correction takes out of a bias is what that very rounding had put into it
    biases = {name: bias for name, bias in quantized.biases.items() if weights.get(name) is quantized.weights[name]}
    tables = {name: quantized.tables[name] for name in placement.tables}
    net = with_quantizers(quantized.source, placement, activations, weights, biases, tables=tables)
    return replace(
        quantized,
        net=net,
        recipe=recipe,
        placement=placement,
        activations=activations,
        weights=weights,
        biases=biases,
        tables=tables,
    )
