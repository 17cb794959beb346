"""What rounding does to each operator of a net: noise of its weight, and of what it makes, all others rounded too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.graph.net import Array, constant
from tersor.graph.observe import Progress
from tersor.graph.placement.sites import TABLE, WEIGHT
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sessions import Feeds, Session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OperatorNoise", "decibels", "operator_noise"]


@dataclass(frozen=True, slots=True)
class OperatorNoise:
    """Of one operator on integers; ratios of signal to noise in dB, infinite where nothing is lost.

    weight_db  None: it has no weight of its own
    output_db  of what it makes in the net on integers against the float net, with all the noise that came in; before
               it is rounded itself, except for what the caller gets
    """

    node: str
    operator: str
    weight_db: float | None
    output_db: float


def operator_noise(
    made: QuantizedNet, batches: Sequence[Feeds], *, threads: int = 0, progress: Progress | None = None
) -> tuple[OperatorNoise, ...]:
    """Run both nets on the same batches and compare, operator by operator in the order of the graph.

    Both keep the values that are looked at: memory is that of one batch's activations, twice.
    """
    nodes = {str(node.name): node for node in made.source.nodes}
    watched = {name: str(nodes[name].outputs[0].name) for name in [*made.placement.integer, *made.placement.tables]}
    names = sorted(set(watched.values()))
    sessions = [Session(net, names, optimized=False, threads=threads) for net in (made.source, made.net)]
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for number, feeds in enumerate(batches):
        wanted, found = (session.run(feeds) for session in sessions)
        for name in names:
            ideal = wanted[name].astype(np.float64)
            signal[name] += float(np.square(ideal).sum())
            noise[name] += float(np.square(found[name] - ideal).sum())
        if progress is not None:
            progress("comparing", number + 1, len(batches))
    return tuple(
        OperatorNoise(node, nodes[node].op_type, _weight_db(made, nodes[node]), decibels(signal[name], noise[name]))
        for node, name in watched.items()
    )


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two energies; infinite without noise, and for nothing against nothing."""
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def _weight_db(made: QuantizedNet, node: ir.Node) -> float | None:
    name = str(node.name)
    rounded, place = (made.tables[name], TABLE) if name in made.tables else (made.weights.get(name), WEIGHT)
    weight = constant(node.inputs[place]) if rounded is not None else None
    if rounded is None or weight is None:
        return None
    ideal: Array = weight.astype(np.float64)
    return decibels(float(np.square(ideal).sum()), float(np.square(rounded.values - ideal).sum()))
