"""Durations counted in buckets of equal relative width: bounded memory, exact counts, errors below 1 %.

As HdrHistogram (Gil Tene): every doubling is cut into equally wide buckets. Differs: 64 of them, reported by their
middle, so that a value is off by at most 1/128.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError, SchemeError

__all__ = ["RELATIVE_ERROR", "DurationRecorder"]

Float64: TypeAlias = npt.NDArray[np.float64]

PARTS = 64
"""Buckets of a doubling."""
RELATIVE_ERROR = 1 / (2 * PARTS)
"""Of any value between SHORTEST_S and LONGEST_S."""
SHORTEST_S = 2.0**-20
"""About a microsecond; what is shorter counts as half of it."""
DOUBLINGS = 40
LONGEST_S = SHORTEST_S * 2.0**DOUBLINGS
"""About twelve days; what is longer counts as infinite."""

_FIRST_EXPONENT = -19  # frexp(SHORTEST_S) is (0.5, -19)
_LAST = 1 + DOUBLINGS * PARTS


class DurationRecorder:
    """Counts of durations in seconds; an infinite one stands for what never ended. 20 kB, whatever it counts.

    >>> recorder = DurationRecorder()
    >>> for milliseconds in range(1, 101):
    ...     recorder.add(milliseconds / 1000)
    >>> recorder.count, recorder.greatest, round(recorder.quantile(0.5), 3)
    (100, 0.1, 0.05)
    """

    __slots__ = ("_counts", "count", "greatest", "least", "total")

    def __init__(self) -> None:
        self._counts = [0] * (_LAST + 1)
        self.count = 0
        self.total = 0.0
        """The exact sum of what was added, in seconds."""
        self.least = math.inf
        """The exact least of what was added, infinite without any."""
        self.greatest = 0.0
        """The exact greatest of what was added, 0 without any."""

    def add(self, seconds: float) -> None:
        """Count one duration; FormatError for one that is negative or not a number."""
        if not seconds >= 0:
            raise FormatError(f"a duration is a number of seconds from 0 on, got {seconds}")
        self._counts[_bucket(seconds)] += 1
        self.count += 1
        self.total += seconds
        self.least = min(self.least, seconds)
        self.greatest = max(self.greatest, seconds)

    def merge(self, other: DurationRecorder) -> None:
        """Count all that `other` counted: the same as adding it here one by one."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    def quantile(self, q: float) -> float:
        """Return the smallest duration that a share `q` of all do not exceed, in seconds, to RELATIVE_ERROR.

        Raises SchemeError for a share outside of 0 … 1, FormatError where nothing was counted.
        """
        if not 0 <= q <= 1:
            raise SchemeError(f"a quantile lies between 0 and 1, got {q}")
        if not self.count:
            raise FormatError("no durations were counted: there is no quantile of them")
        rank = max(0, math.ceil(q * self.count) - 1)
        return float(self._at(np.array([rank]))[0])

    def values(self, most: int) -> Float64:
        """Return what was counted in rising order, in seconds; of more than `most`, so many evenly picked ones."""
        picked = min(self.count, most)
        ranks = ((np.arange(picked) + 0.5) * (self.count / max(picked, 1))).astype(np.int64)
        return self._at(ranks)

    def _at(self, ranks: npt.NDArray[np.int64]) -> Float64:
        """Durations by their number in rising order, counted from 0."""
        ends = np.cumsum(self._counts)
        found = _MIDDLES[np.searchsorted(ends, ranks, side="right")]
        # The ends are known exactly, and no value lies outside of them.
        return np.clip(found, self.least, self.greatest)


def _bucket(seconds: float) -> int:
    if seconds < SHORTEST_S:
        return 0
    if seconds >= LONGEST_S:
        return _LAST
    mantissa, exponent = math.frexp(seconds)
    return 1 + (exponent - _FIRST_EXPONENT) * PARTS + int((mantissa - 0.5) * (2 * PARTS))


def _middles() -> Float64:
    parts = 1 + (np.arange(PARTS) + 0.5) / PARTS
    octaves = SHORTEST_S * 2.0 ** np.arange(DOUBLINGS)
    return np.concatenate([[SHORTEST_S / 2], np.outer(octaves, parts).ravel(), [np.inf]])


_MIDDLES = _middles()
