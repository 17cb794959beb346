"""A candidate and a control on different requests, looked at once: intervals of differences and effect sizes."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.sequential.counts import Count
from tersor.evaluation.statistics import Interval

__all__ = ["difference_interval", "h_interval", "standardized_interval"]


def difference_interval(candidate: Count, control: Count, *, confidence: float = 0.95) -> Interval:
    """Return the interval of candidate's share less control's: two Wilson intervals, squared and added.

    Source: Newcombe 1998 (Statistics in Medicine 17, 873), method 10.

    >>> interval = difference_interval(Count(56, 70), Count(48, 80))
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.0524, 0.3339)
    """
    z = _quantile(candidate, control, confidence)
    (low, high), (lower, higher) = _wilson(candidate, z), _wilson(control, z)
    value = candidate.share - control.share
    return Interval(
        value,
        value - math.hypot(candidate.share - low, higher - control.share),
        value + math.hypot(high - candidate.share, control.share - lower),
        candidate.total + control.total,
    )


def h_interval(candidate: Count, control: Count, *, confidence: float = 0.95) -> Interval:
    """Return the interval of Cohen's h, an effect size of shares that counts the same near 0 as in the middle.

    h = 2 asin √candidate − 2 asin √control; 0.2 is called small, 0.8 large (Cohen 1988). Its spread does not depend on
    the shares, from some ten hits and ten misses of each on.

    >>> round(h_interval(Count(56, 70), Count(48, 80)).value, 3)
    0.442
    """
    z = _quantile(candidate, control, confidence)
    value = 2 * (math.asin(math.sqrt(candidate.share)) - math.asin(math.sqrt(control.share)))
    half = z * math.sqrt(1 / candidate.total + 1 / control.total)
    return Interval(value, value - half, value + half, candidate.total + control.total)


def standardized_interval(differences: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the interval of the mean difference in units of its standard deviation (Cohen's d of pairs).

    With Hedges' correction for few pairs and his large-sample variance (1981); `mean_interval` of the differences is
    the interval in units of the score.

    differences  [n] candidate's score less control's on the same request, n ≥ 4

    >>> interval = standardized_interval([0.1, 0.2, 0.0, 0.3, 0.1, 0.2])
    >>> interval.low < 1.2 < interval.value < 1.3 < interval.high
    True
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < 4 or not np.isfinite(values).all():
        raise ShapeError(f"one row of 4 finite differences or more is needed, got {values!r:.80}")
    n, spread = len(values), float(values.std(ddof=1))
    if spread == 0:
        raise SchemeError("all differences are equal: they have no spread to measure their mean by")
    value = float(values.mean()) / spread * (1 - 3 / (4 * (n - 1) - 1))
    half = NormalDist().inv_cdf((1 + _checked(confidence)) / 2) * math.sqrt(1 / n + value**2 / (2 * n))
    return Interval(value, value - half, value + half, n)


def _wilson(count: Count, z: float) -> tuple[float, float]:
    """Wilson's interval of a share, 1927."""
    n, share = count.total, count.share
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def _quantile(candidate: Count, control: Count, confidence: float) -> float:
    if not (candidate.total and control.total):
        raise SchemeError(f"both variants need a request: candidate {candidate.total}, control {control.total}")
    return NormalDist().inv_cdf((1 + _checked(confidence)) / 2)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise SchemeError(f"confidence lies between 0 and 1, such as 0.95, got {confidence:g}")
    return confidence
