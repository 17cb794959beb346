"""What the inputs of weighted operators look like over calibration data: the means and second moments of their rows.

Source: a convolution is a matrix over patches of its input; the Hessian of its output error is the second moment of
those (Hassibi and Stork 1993; Frantar et al. 2022, arXiv:2208.11580).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.core.arrays import Float32
from tersor.graph.corrections.patches import columns_of, groups_of, has_rows, input_rows
from tersor.graph.net import Array, Net
from tersor.graph.observe import Progress
from tersor.graph.placement.sites import Site
from tersor.graph.sessions import Feeds, Session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["InputStatistics", "gather", "in_turn", "merged"]

PLACES = 1 << 14
"""Places of its output that each operator is seen at, over all batches; a matrix of more columns sees more."""
PER_COLUMN = 8
"""Places for each column, at least: fewer leave a Hessian that knows only the data."""
HELD = 2 << 30
"""Bytes of Hessians at once, at most: a matrix of 13,000 columns has as many alone, and wider ones get none."""
OF_A_MOMENT = 12
"""Bytes: a sum in float64, and the mean in float32."""


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


def in_turn(net: Net, sites: Mapping[str, Site]) -> Iterator[list[str]]:
    """Yield the names of operators whose statistics are held together, in the order of `sites`.

    Those that share a weight stay together, whatever they take; there is one run over the data for each list.
    """
    nodes = {str(node.name): node for node in net.nodes}
    sharing: dict[str, list[str]] = {}
    for name, site in sites.items():
        sharing.setdefault(site.value, []).append(name)
    held, taken = 0, list[str]()
    for names in sharing.values():
        size = sum(_hessian_bytes(nodes[name]) for name in names)
        if taken and held + size > HELD:
            yield taken
            held, taken = 0, []
        held += size
        taken += names
    if taken:
        yield taken


def _hessian_bytes(node: ir.Node) -> int:
    """Return what its statistics take; 0 where it has none."""
    taken = OF_A_MOMENT * groups_of(node) * columns_of(node) ** 2 if has_rows(node) else 0
    return taken if taken <= HELD else 0


def gather(
    net: Net,
    batches: Sequence[Feeds],
    nodes: Collection[str],
    *,
    seen_in: Net | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, InputStatistics]:
    """Return the statistics of the inputs of `nodes`, by name; no products of matrices and too wide ones have none.

    seen_in  the net that is run, with operators of the same names: one with quantizers, for the inputs that integers
             make; None: `net`
    Memory is that of one batch's activations and of the Hessians.
    """
    running = seen_in or net
    found = {str(node.name): node for node in net.nodes if str(node.name) in set(nodes) and _hessian_bytes(node)}
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
