"""Run a net on calibration data and see which values its activations take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tersor.core.errors import FormatError
from tersor.graph.net import Net
from tersor.graph.placement.sites import Placement
from tersor.graph.ranges import WITHOUT_COUNTS, Seen, range_rule
from tersor.graph.scheme import Quantizer
from tersor.graph.sessions import Feeds, Session, read_batches

__all__ = ["Progress", "activation_quantizers", "batches_of", "observe"]

Progress = Callable[[str, int, int], None]
"""Is told (what, done, total)."""


def batches_of(net: Net, data: Iterable[Any], limit: int | None = None) -> list[Feeds]:
    """Return the batches of a loader, checked, in memory: every pass has to see the very same ones."""
    return list(read_batches(net, data, limit=limit))


def observe(
    net: Net,
    batches: Sequence[Feeds],
    values: Collection[str],
    *,
    counts: bool = True,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Seen]:
    """Return what was seen of each value; FormatError for one that is not finite.

    counts  a histogram too: a second run over all batches
    """
    inputs = {str(value.name) for value in net.inputs}
    session = Session(net, [name for name in values if name not in inputs], threads=threads)
    found = {name: Seen() for name in values}
    passes = 2 if counts else 1
    for number in range(passes):
        for place, feeds in enumerate(batches):
            made = {**session.run(feeds), **feeds}
            for name, seen in found.items():
                numbers = np.asarray(made[name], np.float32)
                if number:
                    seen.add_counts(numbers)
                elif numbers.size:
                    seen.add_extremes(numbers)
            if progress is not None:
                progress("observing", number * len(batches) + place + 1, passes * len(batches))
        for name, seen in found.items():
            if not seen.is_finite():
                raise FormatError(
                    f"{net.name}: {name} is not finite on the calibration data, but {seen.low} to {seen.high}: its "
                    "weights are damaged, or the data is not prepared as the net was trained"
                )
    return found


def activation_quantizers(
    placement: Placement,
    seen: Mapping[str, Seen],
    ranges: str,
    given: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Quantizer]:
    """Return value → quantizer; values of one group get the range that covers those of all.

    given  value → (low, high), instead of what the rule finds
    """
    rule = range_rule(ranges)
    known = dict(given or {})
    found = {
        name: known[name] if name in known else rule(seen[name], site.scheme)
        for name, site in placement.activations.items()
    }
    groups: dict[str, tuple[float, float]] = {}
    for name, site in placement.activations.items():
        low, high = groups.get(site.group, found[name])
        groups[site.group] = min(low, found[name][0]), max(high, found[name][1])
    return {name: Quantizer.of_range(*groups[site.group], site.scheme) for name, site in placement.activations.items()}


def needs_counts(ranges: str) -> bool:
    """Whether a rule reads a histogram."""
    range_rule(ranges)
    return ranges not in WITHOUT_COUNTS
