"""What the inputs of weighted operators look like over calibration data: the means and second moments of their rows.

Source: a convolution is a matrix over patches of its input; the Hessian of its output error is the second moment of
those (Hassibi and Stork 1993; Frantar et al. 2022, arXiv:2208.11580).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.graph.corrections.patches import columns_of, has_rows, input_rows
from tersor.graph.net import Array, Net
from tersor.graph.observe import Progress
from tersor.graph.sessions import Feeds, Session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["InputStatistics", "gather", "merged"]

PLACES = 1 << 14
"""Places of its output that each operator is seen at, over all batches; a matrix of more columns sees more."""
PER_COLUMN = 8
"""Places for each column, at least: fewer leave a Hessian that knows only the data."""


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """Of one operator.

    hessian  [groups, columns, columns] float32: mean of x xᵀ over the places of its output
    mean     [groups, columns] float32: mean of x; padding counts as zeros
    places   how many were seen
    """

    hessian: Float32
    mean: Float32
    places: int

    @property
    def importance(self) -> Float32:
        """Mean square of each column, [groups, columns]."""
        return np.ascontiguousarray(np.diagonal(self.hessian, axis1=1, axis2=2))


def merged(parts: Sequence[InputStatistics]) -> InputStatistics | None:
    """Return the statistics of all inputs of operators that share a weight; None of nothing.

    Where the weight stands for another number of groups in one of them, those of the first.
    """
    alike = [part for part in parts if part.hessian.shape == parts[0].hessian.shape]
    if len(alike) < 2:
        return alike[0] if alike else None
    places = sum(part.places for part in alike)
    hessian = sum(part.hessian.astype(np.float64) * part.places for part in alike) / places
    mean = sum(part.mean.astype(np.float64) * part.places for part in alike) / places
    return InputStatistics(np.asarray(hessian, np.float32), np.asarray(mean, np.float32), places)


def gather(
    net: Net,
    batches: Sequence[Feeds],
    nodes: Collection[str],
    *,
    seen_in: Net | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, InputStatistics]:
    """Return the statistics of the inputs of `nodes`, by name; those that are no product of matrices are left out.

    seen_in  the net that is run, with operators of the same names: one with quantizers, for the inputs that integers
             make; None: `net`
    Memory is that of one batch's activations and of the Hessians.
    """
    running = seen_in or net
    found = {str(node.name): node for node in net.nodes if str(node.name) in set(nodes) and has_rows(node)}
    read = {str(node.name): str(node.inputs[0].name) for node in running.nodes if str(node.name) in found}  # type: ignore[union-attr]
    inputs = {str(value.name) for value in running.inputs}
    session = Session(running, [name for name in read.values() if name not in inputs], threads=threads)
    sums = {name: _Sum(node, len(batches)) for name, node in found.items()}
    for number, feeds in enumerate(batches):
        made = {**session.run(feeds), **feeds}
        for name, one in sums.items():
            one.add(made[read[name]])
        if progress is not None:
            progress("gathering", number + 1, len(batches))
    return {name: one.mean() for name, one in sums.items()}


class _Sum:
    """What one operator has seen so far."""

    def __init__(self, node: ir.Node, batches: int) -> None:
        self.node = node
        self.batches = batches
        self.products: Array | None = None
        self.columns: Array | None = None
        self.places = 0

    def add(self, values: Array) -> None:
        """Take a batch."""
        rows = input_rows(self.node, values, self._limit())
        products = rows.transpose(0, 2, 1) @ rows
        columns = rows.sum(axis=1, dtype=np.float64)
        self.products = products.astype(np.float64) if self.products is None else self.products + products
        self.columns = columns if self.columns is None else self.columns + columns
        self.places += rows.shape[1]

    def mean(self) -> InputStatistics:
        """Return the means of all that was seen."""
        assert self.products is not None, "no batch"
        assert self.columns is not None, "no batch"
        hessian, mean = self.products / self.places, self.columns / self.places
        return InputStatistics(hessian.astype(np.float32), mean.astype(np.float32), self.places)

    def _limit(self) -> int:
        return -(-max(PLACES, PER_COLUMN * columns_of(self.node)) // self.batches)
