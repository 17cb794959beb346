"""What a feature looked like when the model was calibrated: a histogram, small enough to travel with the artefact.

Numbers are cut at order statistics of the calibration sample, so that cells hold about equally many; two cells more
take what lies below its least and above its largest number. How many of a later window fall into each cell has a
distribution that does not depend on the feature while nothing has drifted: Dirichlet shares of as many gaps as the
cell spans, then a multinomial (Wilks 1962, "Mathematical Statistics", 8.7). Labels have cells of their own, and one for
all that were never seen. Missing values (NaN, None) have a cell in both. Where nothing repeats and nothing is missing,
that is exact; otherwise it is close, as tests/deploy/monitor/test_drift.py measures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError

__all__ = ["Categories", "Histogram", "Reference"]

Counts: TypeAlias = npt.NDArray[np.int64]
Float64: TypeAlias = npt.NDArray[np.float64]

LEAST = 20
MOST_CELLS = 1024
NEVER_MISSING = 0.5  # missing values that a sample without any stands for


@dataclass(frozen=True, slots=True)
class Histogram:
    """Numbers of the calibration sample.

    edges    [k + 1] rising: its least number, cuts, its largest number; the first two may be equal
    counts   [k] numbers in (edges[i], edges[i + 1]], the first cell with its lower edge
    missing  how many were NaN
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int = 0

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or not 1 <= len(self.counts) <= MOST_CELLS:
            raise SchemeError(f"{len(self.edges)} edges need one count less, 1 to {MOST_CELLS} of them")
        is_rising = all(low < high for low, high in pairwise(self.edges[1:])) and self.edges[0] <= self.edges[1]
        if not (is_rising and all(map(math.isfinite, self.edges))):
            raise SchemeError("edges of a histogram must be finite and rising")
        _check_counts((*self.counts, self.missing), sum(self.counts))

    @classmethod
    def of(cls, sample: npt.ArrayLike, *, cells: int = 20) -> Histogram:
        """Return the summary of a calibration sample.

        sample  [n] numbers, n ≥ 20 that are not NaN; infinite ones are refused
        cells   at most so many of about equal count; fewer where numbers repeat

        >>> Histogram.of(range(100), cells=4).counts
        (25, 25, 25, 25)
        """
        if not 1 <= cells <= MOST_CELLS:
            raise SchemeError(f"a histogram has 1 to {MOST_CELLS} cells, got {cells}")
        values, missing = _numbers(sample)
        if len(values) < LEAST or not np.isfinite(values).all():
            raise SchemeError(f"{LEAST} finite numbers or more are needed to know a feature, got {len(values)}")
        ordered = np.sort(values)
        places = (np.arange(1, cells + 1) * len(ordered)) // cells - 1
        edges = np.concatenate([ordered[:1], np.unique(ordered[places[places >= 0]])])
        counts = np.diff(np.searchsorted(ordered, edges[1:], side="right"), prepend=0)
        return cls(tuple(map(float, edges)), tuple(map(int, counts)), missing)

    def count(self, window: npt.ArrayLike) -> Counts:
        """Return how many numbers of a window fall into each cell: below, the cells, above, missing; [k + 3]."""
        values, missing = _numbers(window)
        inner = np.searchsorted(np.array(self.edges[1:]), values, side="left") + 1
        found = np.bincount(np.where(values < self.edges[0], 0, inner), minlength=len(self.counts) + 2)
        return np.append(found, missing).astype(np.int64)

    @property
    def gaps(self) -> Float64:
        """Gaps between numbers of the sample that each cell spans, [k + 3]: the parameters of Dirichlet."""
        inner = np.array(self.counts, np.float64)
        inner[0] = max(0.5, inner[0] - 1)
        return np.concatenate([[1.0], inner, [1.0, max(NEVER_MISSING, self.missing)]])

    @property
    def shares(self) -> Float64:
        """The share of a window that each cell is expected to hold, [k + 3]."""
        return _shares(self.gaps)

    def draw(self, size: int, draws: int, rng: np.random.Generator) -> Counts:
        """Draw the counts of windows without drift, [draws, k + 3], each of `size` numbers."""
        return _through_shares(self.gaps, size, draws, rng)


@dataclass(frozen=True, slots=True)
class Categories:
    """Labels of the calibration sample.

    labels, counts  each label with its number
    missing         how many were None
    """

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    missing: int = 0

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.counts) or len(set(self.labels)) != len(self.labels):
            raise SchemeError("every label is counted once")
        if not 1 <= len(self.labels) <= MOST_CELLS:
            raise SchemeError(
                f"1 to {MOST_CELLS} labels are counted, got {len(self.labels)}: group the rare ones first"
            )
        _check_counts((*self.counts, self.missing), sum(self.counts))

    @classmethod
    def of(cls, sample: Iterable[str | None]) -> Categories:
        """Return the summary of a calibration sample of 20 labels or more.

        >>> Categories.of(["de", "en"] * 10)
        Categories(labels=('de', 'en'), counts=(10, 10), missing=0)
        """
        found = Counter(sample)
        missing = found.pop(None, 0)
        labels = sorted(label for label in found if label is not None)
        return cls(tuple(labels), tuple(found[label] for label in labels), missing)

    def count(self, window: Iterable[str | None]) -> Counts:
        """Return how many labels of a window fall into each cell: those known, those never seen, missing; [k + 2]."""
        found = Counter(window)
        known = [found.pop(label, 0) for label in self.labels]
        missing = found.pop(None, 0)
        return np.array([*known, sum(found.values()), missing], np.int64)

    @property
    def gaps(self) -> Float64:
        """Numbers of the sample in each cell, and one for labels never seen, [k + 2]."""
        return np.array([*self.counts, 1.0, max(NEVER_MISSING, self.missing)], np.float64)

    @property
    def shares(self) -> Float64:
        """The share of a window that each cell is expected to hold, [k + 2]."""
        return _shares(self.gaps)

    def draw(self, size: int, draws: int, rng: np.random.Generator) -> Counts:
        """Draw the counts of windows without drift, [draws, k + 2], each of `size` labels."""
        return _through_shares(self.gaps, size, draws, rng)


Reference: TypeAlias = Histogram | Categories


def _shares(gaps: Float64) -> Float64:
    return np.asarray(gaps / gaps.sum(), np.float64)


def _through_shares(gaps: Float64, size: int, draws: int, rng: np.random.Generator) -> Counts:
    """Multinomial counts of `size` with Dirichlet shares."""
    shares = rng.standard_gamma(gaps, (draws, len(gaps)))
    return np.asarray(rng.multinomial(size, shares / shares.sum(axis=1, keepdims=True)), np.int64)


def _numbers(values: npt.ArrayLike) -> tuple[Float64, int]:
    """Return the numbers that are not NaN, and how many are."""
    array: npt.NDArray[Any] = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ShapeError(f"a feature is one row of numbers, got shape {array.shape}")
    is_missing = np.isnan(array)
    return array[~is_missing], int(is_missing.sum())


def _check_counts(counts: tuple[int, ...], total: int) -> None:
    if min(counts) < 0 or not LEAST <= total < 2**53:
        raise SchemeError(f"counts are 0 or more, and {LEAST} or more together, got {total}")
