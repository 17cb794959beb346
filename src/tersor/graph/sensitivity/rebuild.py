"""The same quantized net with other operators in float, in 16 bits, or of another width: nothing is observed again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tersor.graph.net import Array, Net, constant
from tersor.graph.observe import Progress
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import WEIGHT
from tersor.graph.ptq import QuantizedNet, Recipe, quantize_net, rounded_to, written
from tersor.graph.scheme import Scheme
from tersor.graph.sessions import Feeds
from tersor.graph.weights import RoundedWeight, rounded_weight

__all__ = ["FORMATS", "Roundings", "roundings_of", "with_left"]


FORMATS: Mapping[str, int | None] = {"int4": 4, "int8": 8, "fp16": None, "fp32": None}
"""What an operator of a net may take, by rising size, with the bits of integers; None: it stays in float."""


@dataclass(frozen=True, eq=False)
class Roundings:
    """One net with weights of several widths: the same float net, the same ranges.

    nets  by bits, all of them of one `source`
    """

    nets: Mapping[int, QuantizedNet]

    @property
    def finest(self) -> QuantizedNet:
        """The one of most bits."""
        return self.nets[max(self.nets)]

    def net_of(self, kind: str) -> QuantizedNet:
        """Return the one whose weights of integers are of a format; of most bits for a float."""
        return self.nets[FORMATS[kind] or max(self.nets)]

    def mixed(self, formats: Mapping[str, str]) -> QuantizedNet:
        """Return the net with an operator in each of `formats`; what is not named stays in integers of most bits.

        formats  operator → a key of FORMATS
        """
        bits = {name: FORMATS[kind] for name, kind in formats.items()}
        left = {name for name, width in bits.items() if width is None}
        halved = {name for name, kind in formats.items() if kind == "fp16"}
        widths = {width for width in bits.values() if width is not None}
        base = self.nets[min(widths)] if widths else self.finest
        few = {name for name, width in bits.items() if width == base.recipe.bits}
        finest = self.finest
        wide = set(finest.weights) - few - left if base is not finest else set()
        left |= set(base.recipe.left)
        return with_left(base, left, wide=wide, halved=halved, donor=finest)


def roundings_of(
    net: Net,
    batches: Sequence[Feeds],
    recipe: Recipe,
    widths: Collection[int],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Roundings:
    """Return `net` with weights of each of `widths` bits; `bits` of the recipe are not looked at.

    batches  as `batches_of` gives them
    """
    finest = quantize_net(net, batches, replace(recipe, bits=max(widths)), threads=threads, progress=progress)
    others = {
        bits: rounded_to(finest, bits, batches, weights=recipe.weights, threads=threads, progress=progress)
        for bits in sorted(set(widths) - {finest.recipe.bits})
    }
    return Roundings({**others, finest.recipe.bits: finest})


def with_left(
    quantized: QuantizedNet,
    left: Collection[str] | None = None,
    *,
    wide: Collection[str] | None = None,
    halved: Collection[str] | None = None,
    donor: QuantizedNet | None = None,
) -> QuantizedNet:
    """Return `quantized` with the operators of `left`, and no others, in float beside those that must be.

    wide    operators, these and no others, whose weights have 8 bits
    halved  operators in float, these and no others, whose weights have 16
    donor   where weights of 8 bits come from; None: what had fewer is rounded to nearest
    None leaves any of the first three as it is.
    """
    recipe = quantized.recipe
    recipe = recipe if left is None else replace(recipe, left=tuple(sorted(left)))
    recipe = recipe if wide is None else replace(recipe, wide=tuple(sorted(wide)))
    recipe = recipe if halved is None else replace(recipe, halved=tuple(sorted(halved)))
    placement = place(quantized.source, quantized.placement.engine, recipe.precision, left=recipe.left)
    nodes = {str(node.name): node for node in quantized.source.nodes}
    weights: dict[str, RoundedWeight] = {}
    biases: dict[str, Array] = {}
    rounded: dict[tuple[str, Scheme], RoundedWeight] = {}  # once for all operators that share a weight
    for name, site in placement.weights.items():
        held = [net for net in (quantized, donor) if net is not None and name in net.weights]
        source = next((net for net in held if net.weights[name].quantizer.scheme == site.scheme), None)
        if source is not None:
            weights[name] = source.weights[name]
            # what a correction takes out of a bias is what that very rounding had put into it
            biases |= {name: source.biases[name]} if name in source.biases else {}
            continue
        if (site.value, site.scheme) not in rounded:
            weight = constant(nodes[name].inputs[WEIGHT])
            assert weight is not None, "a weight site without a constant"
            rounded[site.value, site.scheme] = rounded_weight(weight, site)
        weights[name] = rounded[site.value, site.scheme]
    made = replace(
        quantized,
        recipe=recipe,
        placement=placement,
        activations={name: quantized.activations[name] for name in placement.activations},
        weights=weights,
        biases=biases,
        tables={name: quantized.tables[name] for name in placement.tables},
    )
    return replace(made, net=written(made))
