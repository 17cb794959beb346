"""Which range of values the codes of an activation cover: rules that read what was seen of it.

A rule is a function from what was seen to (low, high). Outside the range values saturate, inside they are rounded to
steps: a wider one loses less of the first and more of the second.

Source: percentile and entropy as Migacz 2017 ("8-bit Inference with TensorRT") has them; mean squared error as in
Banner et al. 2019, arXiv:1810.05723, here on the histogram itself instead of a fitted distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError
from tersor.graph.scheme import Quantizer, Scheme

__all__ = ["RANGES", "Seen", "range_rule"]

BINS = 2048
KEPT = 0.9999
"""Share of the values that a percentile keeps."""
SHARES = tuple(float(share) for share in np.linspace(1.0, 0.1, 31))
"""Of each end of the range: what the mean squared error is tried for."""
ENTROPY_LEVELS = 128
ENTROPY_STEP = 16

Counts = npt.NDArray[np.float64]
Range = tuple[float, float]


@dataclass(slots=True, eq=False)
class Seen:
    """What was seen of a value: extremes of all batches, their mean over batches, and a histogram between them."""

    low: float = np.inf
    high: float = -np.inf
    lows: float = 0.0
    highs: float = 0.0
    batches: int = 0
    counts: Counts | None = None

    def add_extremes(self, values: npt.NDArray[np.float32]) -> None:
        """Take a batch; not finite values end up in the extremes."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = float(np.minimum(self.low, low)), float(np.maximum(self.high, high))  # NaN stays
        self.lows, self.highs, self.batches = self.lows + low, self.highs + high, self.batches + 1

    def add_counts(self, values: npt.NDArray[np.float32]) -> None:
        """Take a batch again, once the extremes of all are known."""
        if self.counts is None:
            self.counts = np.zeros(BINS)
        width = (self.high - self.low) / BINS
        if width <= 0 or not np.isfinite(1 / width):
            self.counts[0] += values.size
            return
        places = ((values.reshape(-1) - np.float32(self.low)) * np.float32(1 / width)).astype(np.int32)
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    @property
    def centres(self) -> Counts:
        """The middle of each bin."""
        width = (self.high - self.low) / BINS
        return np.asarray(self.low + width * (np.arange(BINS) + 0.5), np.float64)

    def is_finite(self) -> bool:
        """Whether no NaN or infinity was seen."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


Rule = Callable[[Seen, Scheme], Range]


def minmax(seen: Seen, scheme: Scheme) -> Range:  # noqa: ARG001 (the rules' signature)
    """Return all that was seen."""
    return seen.low, seen.high


def average(seen: Seen, scheme: Scheme) -> Range:  # noqa: ARG001
    """Return the mean over batches of their extremes: one odd batch weighs as little as any."""
    return seen.lows / seen.batches, seen.highs / seen.batches


def percentile(seen: Seen, scheme: Scheme) -> Range:  # noqa: ARG001
    """Return the range that all but one in 10 000 values lie in, half of those at each end."""
    assert seen.counts is not None, "needs a histogram"
    share = np.cumsum(seen.counts) / seen.counts.sum()
    inside = np.flatnonzero((share > (1 - KEPT) / 2) & (share - seen.counts / seen.counts.sum() < (1 + KEPT) / 2))
    width = (seen.high - seen.low) / BINS
    return seen.low + width * inside[0], seen.low + width * (inside[-1] + 1)


def mse(seen: Seen, scheme: Scheme) -> Range:
    """Return the range for which rounding and saturation together lose the least energy."""
    assert seen.counts is not None, "needs a histogram"
    filled = np.flatnonzero(seen.counts)
    centres, counts = seen.centres[filled], seen.counts[filled]
    both = scheme.symmetric
    lows = SHARES if seen.low < 0 and not both else (1.0,)
    best, found = np.inf, (seen.low, seen.high)
    for high_share in SHARES if seen.high > 0 or both else (1.0,):
        for low_share in (high_share,) if both else lows:
            low, high = seen.low * low_share, seen.high * high_share
            quantizer = Quantizer.of_range(low, high, scheme)
            lost = float(counts @ np.square(_rounded(centres, quantizer) - centres))
            if lost < best:
                best, found = lost, (low, high)
    return found


def _rounded(values: Counts, quantizer: Quantizer) -> Counts:
    """What values become, in float64: the histogram's middles lie between numbers that float32 has."""
    scale, zero, scheme = float(quantizer.scale), int(quantizer.zero_point), quantizer.scheme
    codes = np.clip(np.rint(values / scale) + zero, scheme.lowest, scheme.highest)
    return np.asarray((codes - zero) * scale)


def entropy(seen: Seen, scheme: Scheme) -> Range:
    """Return the range whose 128 steps of magnitude diverge least from the distribution (Kullback-Leibler)."""
    assert seen.counts is not None, "needs a histogram"
    largest = max(-seen.low, seen.high)
    if not largest > 0:
        return minmax(seen, scheme)
    places = np.minimum((np.abs(seen.centres) / largest * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(places, weights=seen.counts, minlength=BINS).astype(np.float64)
    counts[0] = 0  # exact zeros (padding, ReLU) are met whatever the range is
    if not counts.any():
        return minmax(seen, scheme)
    stops = range(ENTROPY_LEVELS, BINS + 1, ENTROPY_STEP)
    stop = min(stops, key=lambda stop: _divergence(counts, stop))
    limit = largest * stop / BINS
    return max(seen.low, -limit), min(seen.high, limit)


def _divergence(counts: Counts, stop: int) -> float:
    """Divergence of the first `stop` bins, what lies behind folded into the last, from themselves in fewer steps."""
    kept = counts[:stop].copy()
    kept[-1] += counts[stop:].sum()
    edges = np.linspace(0, stop, ENTROPY_LEVELS + 1).round().astype(np.int64)
    steps = np.repeat(np.arange(ENTROPY_LEVELS), np.diff(edges))
    filled = counts[:stop] > 0
    total = np.bincount(steps, weights=counts[:stop], minlength=ENTROPY_LEVELS)
    share = np.bincount(steps, weights=filled, minlength=ENTROPY_LEVELS)
    spread = np.where(filled, (total / np.maximum(share, 1))[steps], 0.0)
    p, q = kept / kept.sum(), spread / max(spread.sum(), 1e-300)
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))


RANGES: Mapping[str, Rule] = MappingProxyType(
    {"minmax": minmax, "average": average, "percentile": percentile, "entropy": entropy, "mse": mse}
)
"""By name; all but the first two need a histogram, which is a second pass over the data."""

WITHOUT_COUNTS = ("minmax", "average")


def range_rule(name: str) -> Rule:
    """Return a rule; SchemeError names what there is."""
    if name not in RANGES:
        raise SchemeError(f"no range {name!r}; there are {', '.join(RANGES)}")
    return RANGES[name]
