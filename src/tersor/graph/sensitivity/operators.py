"""How much of the error of a quantized net each operator causes: all on integers but it, and it alone.

Both are measured at the output of the whole net on calibration data, as noise over signal. Alone tells what an operator
does to a net in float; without it, what the net would gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.graph.corrections.layers import decibels
from tersor.graph.observe import Progress
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.rebuild import with_left
from tersor.graph.sessions import Feeds, Session

__all__ = ["Sensitivity", "noise", "sensitivities"]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one operator costs; noise is Σ(y - ŷ)² / Σy² over all outputs of the net.

    weights  how many it has
    alone    noise where only it runs on integers
    without  noise where all but it do
    gain     what is left of the whole noise is smaller by this share without it; may be negative
    """

    node: str
    operator: str
    weights: int
    alone: float
    without: float
    gain: float

    @property
    def alone_db(self) -> float:
        """Signal to noise where only it runs on integers."""
        return decibels(1.0, self.alone)


def noise(quantized: QuantizedNet, batches: Sequence[Feeds], wanted: Sequence[dict[str, np.ndarray]]) -> float:
    """Return noise over signal at the outputs; `wanted` are those of the float net, batch by batch."""
    session = Session(quantized.net)
    lost = power = 0.0
    for feeds, ideal in zip(batches, wanted, strict=True):
        made = session.run(feeds)
        for name, values in ideal.items():
            if values.dtype.kind == "f":
                lost += float(np.square(made[name].astype(np.float64) - values).sum())
                power += float(np.square(values.astype(np.float64)).sum())
    return lost / power if power else 0.0


def sensitivities(
    quantized: QuantizedNet, batches: Sequence[Feeds], *, progress: Progress | None = None
) -> tuple[Sensitivity, ...]:
    """Return one row for each operator with weights or a table that are integers, those that cost most first.

    batches  inputs to measure on, as `batches_of` gives them; a few hundred items tell
    """
    source = Session(quantized.source)
    wanted = [{name: made for name, made in source.run(feeds).items() if name in source.outputs} for feeds in batches]
    nodes = {str(node.name): node.op_type for node in quantized.source.nodes}
    stored = {**quantized.weights, **quantized.tables}
    names = [name for name in nodes if name in stored]
    every = {*quantized.placement.integer, *names}
    base = set(quantized.recipe.left)
    whole = noise(quantized, batches, wanted)
    rows = []
    for number, name in enumerate(names):
        without = noise(with_left(quantized, base | {name}), batches, wanted)
        alone = noise(with_left(quantized, (base | every) - {name}), batches, wanted)
        gain = (whole - without) / whole if whole else 0.0
        count = int(stored[name].codes.size)
        rows.append(Sensitivity(name, nodes[name], count, alone, without, gain))
        if progress is not None:
            progress("sensitivity", number + 1, len(names))
    return tuple(sorted(rows, key=lambda row: (-row.gain, row.node)))
