"""Post-training quantization of a net: simplify, place, observe, round, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tersor.graph.corrections.balance import balanced
from tersor.graph.corrections.bias import corrected_biases
from tersor.graph.corrections.equalize import equalized
from tersor.graph.corrections.rounding import round_with_statistics, wants_statistics
from tersor.graph.corrections.smooth import smooth
from tersor.graph.corrections.statistics import gather, in_turn
from tersor.graph.net import Array, Net, constant
from tersor.graph.observe import Progress, activation_quantizers, batches_of, needs_counts, observe
from tersor.graph.placement.engines import engine
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import TABLE, WEIGHT, Placement
from tersor.graph.ranges import Seen
from tersor.graph.scheme import Precision, Quantizer
from tersor.graph.sessions import Feeds
from tersor.graph.simplify import simplified, with_products
from tersor.graph.weights import RoundedWeight, rounded_tables
from tersor.graph.writing.halved import halved
from tersor.graph.writing.qdq import with_quantizers
from tersor.graph.writing.stored import is_packed, refuse_halves

__all__ = ["QuantizedNet", "Recipe", "quantize_net", "rounded_to", "written"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a net is rounded.

    bits      of weights; activations have 8
    activations  "static", "dynamic" or "float", see Precision
    group     so many weights of a row share a scale, where activations are not static; None: a row
    wide      names of operators whose weights have 8 bits whatever `bits` says
    engine    a key of ENGINES: what the quantizers are placed for
    ranges    a key of RANGES: how the range of an activation is chosen
    weights   a key of METHODS, or "auto": best below 8 bits, else gptq
    left      names of operators that stay in float
    halved    those of them whose weights are stored in 16 bits
    equalize  let weights that follow one another share their range, and channels of activations fill that they share.
              Not by default: with a scale for each row, channels that all reach to the end of one range lose more
              beyond it, on inputs not seen, than finer steps win (benchmarks/net_cures.py)
    smooth    divide the inputs of linear layers by column where their outputs gain, as in transformers
    biases    take the mean of what rounding a weight does into the bias behind it
    products  let all products of two activations run on integers; without it only scores of attention do, where the
              engine fuses them
    """

    bits: int = 8
    activations: str = "static"
    group: int | None = None
    wide: tuple[str, ...] = ()
    engine: str = "onnxruntime"
    ranges: str = "mse"
    weights: str = "auto"
    left: tuple[str, ...] = ()
    halved: tuple[str, ...] = ()
    equalize: bool = False
    smooth: bool = True
    biases: bool = True
    products: bool = False

    @property
    def precision(self) -> Precision:
        """What of it says how finely numbers are rounded; SchemeError where that does not go together."""
        return Precision(self.bits, self.activations, self.group, frozenset(self.wide))

    def resolved(self) -> Recipe:
        """Return the recipe with what "auto" stands for."""
        return replace(self, weights="gptq" if self.bits >= 8 else "best") if self.weights == "auto" else self


@dataclass(frozen=True, eq=False)
class QuantizedNet:
    """What PTQ makes.

    net      with quantizers: what is saved and run
    source   the float net that it was made from, simplified, equalized and smoothed: the same operators and names
    biases   node → bias that was put in the place of its own
    tables   Gather → the rows it takes
    """

    net: Net
    source: Net
    recipe: Recipe
    placement: Placement
    activations: Mapping[str, Quantizer]
    weights: Mapping[str, RoundedWeight]
    biases: Mapping[str, Array] = field(default_factory=dict)
    tables: Mapping[str, RoundedWeight] = field(default_factory=dict)


def quantize_net(
    net: Net,
    calibration: Iterable[Any] | Sequence[Feeds],
    recipe: Recipe = Recipe(),
    *,
    limit: int | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> QuantizedNet:
    """Return `net` on integers.

    calibration  batches as a loader gives them (`read_batches`), at most `limit`; all of them are held in memory
    threads      of ONNX Runtime; 0: as many as there are cores
    Raises SchemeError for what does not exist or fits nowhere, ShapeError and FormatError for data that is not what
    the net takes, EngineError where ONNX Runtime cannot run the net.
    """
    row, recipe = engine(recipe.engine), recipe.resolved()
    row, precision = replace(row, products=row.products and recipe.products), recipe.precision
    plain = simplified(net)
    batches = batches_of(plain, calibration, limit)
    is_static = precision.activations == "static"
    if is_static:
        if recipe.equalize:
            plain = equalized(plain)
            rounded = place(plain, row, precision)  # whatever is left in float: to leave one more changes no other
            plain = balanced(plain, rounded, batches, threads=threads, progress=progress)
    elif "Gemm" not in row.compressed:
        plain = with_products(plain)
    placement = place(plain, row, precision, left=recipe.left)
    is_decoded = precision.activations == "float" or precision.block is not None
    if is_decoded and any(is_packed(site.scheme) for site in placement.weights.values()):
        refuse_halves(plain)
    seen: Mapping[str, Seen] = {}
    if is_static:
        counts = needs_counts(recipe.ranges)
        seen = observe(plain, batches, placement.activations, counts=counts, threads=threads, progress=progress)
    ranges: Mapping[str, tuple[float, float]] = {}
    if recipe.smooth and precision.activations != "float":
        # a range found at run time is smoothed as one that was calibrated
        rounded = place(plain, row, replace(precision, activations="static", block=None), left=recipe.left)
        flat = smooth(plain, rounded, batches, threads=threads, progress=progress)
        plain, ranges = flat.net, flat.ranges
        placement = place(plain, row, precision, left=recipe.left)
    activations = activation_quantizers(placement, seen, recipe.ranges, ranges)
    weights, biases = _weights(plain, placement, recipe, batches, threads=threads, progress=progress)
    made = QuantizedNet(plain, plain, recipe, placement, activations, weights, biases, rounded_tables(plain, placement))
    return replace(made, net=written(made))


def rounded_to(
    quantized: QuantizedNet,
    bits: int,
    batches: Sequence[Feeds],
    *,
    weights: str = "auto",
    threads: int = 0,
    progress: Progress | None = None,
) -> QuantizedNet:
    """Return the same net with weights of other bits: float net, ranges and tables stay what they are.

    weights  see Recipe
    """
    recipe = replace(quantized.recipe, bits=bits, weights=weights).resolved()
    placement = place(quantized.source, quantized.placement.engine, recipe.precision, left=recipe.left)
    found, biases = _weights(quantized.source, placement, recipe, batches, threads=threads, progress=progress)
    made = replace(quantized, recipe=recipe, placement=placement, weights=found, biases=biases)
    return replace(made, net=written(made))


def written(quantized: QuantizedNet) -> Net:
    """Return the net that its parts make up; `net` of it is not looked at."""
    source = quantized.source
    made = with_quantizers(
        source,
        quantized.placement,
        quantized.activations,
        quantized.weights,
        quantized.biases,
        tables=quantized.tables,
    )
    small = set(quantized.recipe.halved)
    places = [node.inputs[TABLE if node.op_type == "Gather" else WEIGHT] for node in source.nodes if node.name in small]
    names = {str(value.name) for value in places if constant(value) is not None and value is not None}
    return halved(made, names) if names else made


def _weights(
    net: Net,
    placement: Placement,
    recipe: Recipe,
    batches: Sequence[Feeds],
    *,
    threads: int,
    progress: Progress | None,
) -> tuple[dict[str, RoundedWeight], dict[str, Array]]:
    """Round the weights, and correct biases where the recipe says so."""
    wants = recipe.biases or wants_statistics(recipe.weights)
    weights: dict[str, RoundedWeight] = {}
    biases: dict[str, Array] = {}
    for names in in_turn(net, placement.weights) if wants else [list(placement.weights)]:
        part = placement.of_weights(set(names))
        known = gather(net, batches, names, threads=threads, progress=progress) if wants else {}
        made = round_with_statistics(net, part, recipe.weights, known)
        weights.update(made)
        if recipe.biases:
            biases.update(corrected_biases(net, part, made, known))
    return {name: weights[name] for name in placement.weights}, biases
