"""Post-training quantization of a net: simplify, place, observe, round, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tersor.graph.engines import engine
from tersor.graph.net import Array, Net
from tersor.graph.observe import Progress, activation_quantizers, batches_of, needs_counts, observe
from tersor.graph.placement import Placement, place
from tersor.graph.qdq import with_quantizers
from tersor.graph.scheme import Quantizer
from tersor.graph.sessions import Feeds
from tersor.graph.simplify import simplified
from tersor.graph.weights import RoundedWeight, round_weights

__all__ = ["QuantizedNet", "Recipe", "quantize_net"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a net is rounded.

    bits    of weights; activations have 8
    engine  a key of ENGINES: what the quantizers are placed for
    ranges  a key of RANGES: how the range of an activation is chosen
    weights a key of METHODS
    left    names of operators that stay in float
    """

    bits: int = 8
    engine: str = "onnxruntime"
    ranges: str = "mse"
    weights: str = "rtn"
    left: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class QuantizedNet:
    """What PTQ makes.

    net      with quantizers: what is saved and run
    source   the float net that it was made from, simplified: the same operators by the same names
    biases   node → bias that was put in the place of its own
    """

    net: Net
    source: Net
    recipe: Recipe
    placement: Placement
    activations: Mapping[str, Quantizer]
    weights: Mapping[str, RoundedWeight]
    biases: Mapping[str, Array] = field(default_factory=dict)


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
    row = engine(recipe.engine)
    plain = simplified(net)
    placement = place(plain, row, weight_bits=recipe.bits, left=recipe.left)
    batches = batches_of(plain, calibration, limit)
    counts = needs_counts(recipe.ranges)
    seen = observe(plain, batches, placement.activations, counts=counts, threads=threads, progress=progress)
    activations = activation_quantizers(placement, seen, recipe.ranges)
    weights = round_weights(plain, placement, recipe.weights)
    made = with_quantizers(plain, placement, activations, weights)
    return QuantizedNet(made, plain, recipe, placement, activations, weights)
