"""The same quantized net with other operators left in float: nothing is observed or rounded again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from tersor.graph.placement import place
from tersor.graph.ptq import QuantizedNet
from tersor.graph.qdq import with_quantizers

__all__ = ["with_left"]


def with_left(quantized: QuantizedNet, left: Collection[str]) -> QuantizedNet:
    """Return `quantized` with the operators of `left`, and no others, in float beside those that must be."""
    recipe = replace(quantized.recipe, left=tuple(sorted(left)))
    placement = place(quantized.source, quantized.placement.engine, weight_bits=recipe.bits, left=left)
    activations = {name: quantized.activations[name] for name in placement.activations}
    weights = {name: quantized.weights[name] for name in placement.weights}
    biases = {name: bias for name, bias in quantized.biases.items() if name in placement.weights}
    net = with_quantizers(quantized.source, placement, activations, weights, biases)
    return replace(
        quantized,
        net=net,
        recipe=recipe,
        placement=placement,
        activations=activations,
        weights=weights,
        biases=biases,
    )
