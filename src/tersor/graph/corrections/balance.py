"""Channels of activations divided so that each fills the range they share, through sums and residual streams.

A tensor of activations has one step for all of its channels, that of the widest; in a channel of half its width, a bit
of eight is lost. Channels that a positive factor passes through are divided by it where they are made and multiplied
where they are read: the function of the net stays. All values of a residual stream have the same factors, so that no
pair of layers can do it.

Each channel is divided by the largest share that it has of the width of any value it is part of. So no step becomes
wider, and no channel's noise grows; what is lost is some of the weights' precision, of which 8 bits have to spare.
Source: the idea of Nagel et al. 2019, arXiv:1906.04721, section 4.1. Differs: widths of activations instead of weights,
and every channel that is tied to another (`channels_of`) instead of pairs of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tersor.graph.corrections.channels import AXIS, Channels, Ties, channels_of
from tersor.graph.corrections.equalize import scale
from tersor.graph.corrections.patches import has_rows
from tersor.graph.net import Net
from tersor.graph.observe import Progress
from tersor.graph.placement.sites import Placement
from tersor.graph.sessions import Feeds, Session

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["balanced", "shares"]

SMALLEST = 1 / 16
"""Of a factor: what is nearly nothing in calibration may be more elsewhere."""

ROUNDS = 20
CONVERGED = 1e-3

Widths = npt.NDArray[np.float64]


def balanced(
    net: Net,
    placement: Placement,
    batches: Sequence[Feeds],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Net:
    """Return a net of the same function, up to the rounding of float32, whose channels fill their ranges."""
    made = net.copy()
    channels = channels_of(made)
    watched = [name for name in placement.activations if _is_free(channels.of(name))]
    if not watched:
        return made
    widths = channel_widths(made, batches, watched, threads=threads, progress=progress)
    factors = shares(channels, placement, widths)
    for node in list(made.nodes):
        if has_rows(node):
            reads, makes = _of(channels, node.inputs[0], factors), _of(channels, node.outputs[0], factors)
            scale(made, node, reads=reads, makes=makes)
    return made


def channel_widths(
    net: Net,
    batches: Sequence[Feeds],
    values: Sequence[str],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Widths]:
    """Return value → the largest magnitude of each of its channels, float64 [channels], the mean of all batches."""
    session = Session(net, values, threads=threads)
    found: dict[str, Widths] = {}
    for number, feeds in enumerate(batches):
        made = session.run(feeds)
        for name in values:
            numbers = made[name]
            if numbers.size:
                axes = tuple(axis for axis in range(numbers.ndim) if axis != AXIS)
                found[name] = found.get(name, 0.0) + np.abs(numbers).max(axis=axes).astype(np.float64) / len(batches)
        if progress is not None:
            progress("balancing", number + 1, len(batches))
    return found


def shares(channels: Channels, placement: Placement, widths: Mapping[str, Widths]) -> Widths:
    """Return tie → what its channels are divided by: 1 / 16 to 1, and 1 for those that are fixed or were not seen.

    widths  value → that of each of its channels
    What is divided may leave its value less wide, so that others have a larger share of it: gone through until no
    factor changes.
    """
    known = {
        name: ties for name in widths if (ties := channels.of(name)) is not None and len(ties) == len(widths[name])
    }
    made = np.ones(channels.count)
    for _ in range(ROUNDS):
        found = _shares_once(
            known, placement, {name: widths[name] / made[ties] for name, ties in known.items()}, len(made)
        )
        found = np.clip(made * found, SMALLEST, 1)
        change, made = float(np.abs(np.log(found / made)).max()), found
        if change < CONVERGED:
            break
    return made


def _shares_once(known: Mapping[str, Ties], placement: Placement, widths: Mapping[str, Widths], count: int) -> Widths:
    largest: dict[str, float] = {}
    for name in known:
        group = placement.activations[name].group
        largest[group] = max(largest.get(group, 0.0), float(widths[name].max(initial=0.0)))
    found = np.zeros(count)
    for name, ties in known.items():
        whole = largest[placement.activations[name].group]
        if whole > 0:
            np.maximum.at(found, ties, widths[name] / whole)
    found = np.where(np.isfinite(found) & (found > 0), found, 1.0)
    found[0] = 1.0
    return found


def _is_free(ties: Ties | None) -> bool:
    return ties is not None and bool(ties.any())


def _of(channels: Channels, value: ir.Value | None, factors: Widths) -> Widths | None:
    ties = channels.of(value)
    return None if ties is None else factors[ties]
