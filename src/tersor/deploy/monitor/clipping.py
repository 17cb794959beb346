"""Activation clipping: does traffic leave the ranges that the calibration data set, in any layer?

A layer with quantized activations cuts off what lies outside its range. On the calibration data that is a known, small
share; more of it means that the inputs are others than those the ranges were made for. The numbers of one request are
correlated, often strongly (one long outlier token clips hundreds), so that what counts is how many *independent*
numbers a request is worth: the design effect of Kish 1965, measured on both samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.evaluation.distributions import beta_share

__all__ = ["Clipping", "ClippingReference", "clipping"]


@dataclass(frozen=True, slots=True)
class ClippingReference:
    """What a layer clipped on the calibration data.

    clipped, total  activations
    effect          correlated activations that are worth one independent activation, ≥ 1
    """

    clipped: int
    total: int
    effect: float

    def __post_init__(self) -> None:
        if not 0 <= self.clipped <= self.total or not self.total or not 1 <= self.effect <= self.total:
            raise SchemeError(f"0 ≤ clipped ≤ total and 1 ≤ effect ≤ total are needed: {self}")

    @classmethod
    def of(cls, clipped: npt.ArrayLike, totals: npt.ArrayLike) -> ClippingReference:
        """Return the reference of a layer from its calibration requests.

        clipped, totals  [r] activations of each request, r ≥ 2: those clipped, and all of them
        """
        hits, sizes = _checked(clipped, totals, least=2)
        return cls(int(hits.sum()), int(sizes.sum()), _effect(hits, sizes))


@dataclass(frozen=True, slots=True)
class Clipping:
    """What a layer clips now.

    share, expected  of the activations, now and on the calibration data
    p_value          probability of as much or more while the inputs are like the calibration data
    effect           the design effect that was used, the larger of both samples'
    requests         in the window
    """

    share: float
    expected: float
    p_value: float
    effect: float
    requests: int


def clipping(reference: ClippingReference, clipped: npt.ArrayLike, totals: npt.ArrayLike) -> Clipping:
    """Compare a window of requests with the calibration data, one-sided: only more clipping is harm.

    Given how many of both samples' activations are clipped in all, those of the window are binomial (Przyborowski and
    Wilenski 1940); both are divided by the design effect first.

    clipped, totals  [r] activations of each request, r ≥ 2
    """
    hits, sizes = _checked(clipped, totals, least=2)
    effect = max(reference.effect, _effect(hits, sizes))
    ours, theirs = float(hits.sum()) / effect, reference.clipped / effect
    window = float(sizes.sum()) / (float(sizes.sum()) + reference.total)
    p_value = beta_share(window, ours, theirs + 1) if ours > 0 else 1.0
    share, expected = float(hits.sum() / sizes.sum()), reference.clipped / reference.total
    return Clipping(share, expected, min(1.0, max(0.0, p_value)), effect, len(hits))


def _effect(hits: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> float:
    """The variance of the share between requests, over that of independent activations; at least 1."""
    total, number = float(sizes.sum()), len(hits)
    share = float(hits.sum()) / total
    free = share * (1 - share) / total
    if free == 0:
        return 1.0
    spread = float((((hits - share * sizes) / total) ** 2).sum()) * number / (number - 1)
    return min(total, max(1.0, spread / free))


def _checked(
    clipped: npt.ArrayLike, totals: npt.ArrayLike, *, least: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    hits, sizes = np.asarray(clipped, np.float64), np.asarray(totals, np.float64)
    if hits.ndim != 1 or hits.shape != sizes.shape or len(hits) < least:
        raise ShapeError(f"{least} requests or more are needed, with both numbers, got {hits.shape} and {sizes.shape}")
    if not ((hits >= 0) & (hits <= sizes) & (sizes > 0) & (sizes < 2**53)).all():
        raise ShapeError("of each request's activations, at least one, none to all are clipped")
    return hits, sizes
