"""Confidence intervals of what was measured on units: windows of text, questions, requests.

Items inside a unit (the tokens of a window) are correlated, units are not, so that only the spread between units says
how sure a mean is. There are few units and their means are skewed (a few tokens carry most of the divergence), for
which the textbook t interval covers 85 % where it promises 95. The intervals here stay at 93 to 97 % from 15 units on,
by two corrections that need no resampling and vanish as units grow:

- Hall's cubic transformation turns the skewed studentized mean into a symmetric one (Hall 1992, "On the removal of
  skewness by transformation", JRSS B 54). Differs: the sample's skewness is raised by 1 + 8/units, since small samples
  show less of it than there is.
- The t quantile has the degrees of freedom that the units' kurtosis leaves to their variance (Satterthwaite 1946).

Compared with it by simulation: docs/log.md. No randomness; one unit gives an interval from -inf to inf, equal values
one of length 0, and an infinite value an infinite mean.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.evaluation.distributions import beta_quantile, t_quantile

__all__ = [
    "Interval",
    "check_confidence",
    "exp_interval",
    "mean_interval",
    "proportion_interval",
    "quantile_interval",
    "ratio_interval",
    "root_interval",
    "units_needed",
]

Float64: TypeAlias = npt.NDArray[np.float64]

SMALL_SAMPLE = (
    8.0  # skewness of n units is raised by 1 + 8/n: fitted to units like windows of divergences, see docs/log.md
)
FEW = 5  # units that fail (or pass) below which a share is bounded by its counts, not by its spread
DESIGN_EFFECT = 2.0  # taken for the correlation of failures where too few are there to measure it
POWER = 0.8
MOST_UNITS = 10**9
UNITS_TO_BEGIN = 30


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, its confidence interval, and how many independent units it rests on."""

    value: float
    low: float
    high: float
    units: int


def mean_interval(values: npt.ArrayLike, sizes: npt.ArrayLike | None = None, *, confidence: float = 0.95) -> Interval:
    """Interval of the mean over all items.

    values  [u]: the mean of every unit; of a paired comparison, the mean of the differences
    sizes   [u] > 0: items of every unit, None: equal
    Raises ShapeError without units, FormatError for NaN.

    >>> interval = mean_interval([1.0, 2.0, 3.0, 2.0])
    >>> interval.value, round(interval.low, 2), round(interval.high, 2)
    (2.0, 0.7, 3.3)
    """
    means, weights = _units(values, sizes)
    return ratio_interval(means * weights, weights, confidence=confidence)


def ratio_interval(numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Interval of Σ numerators / Σ denominators, [u] each, denominators > 0; errors as for `mean_interval`.

    >>> ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Interval(value=2.0, low=2.0, high=2.0, units=3)
    """
    check_confidence(confidence)
    above, below = _units(numerators, denominators)
    n, total = len(above), float(below.sum())
    least, most = float(above.min()), float(above.max())
    if math.isinf(least) or math.isinf(most):
        if least == -most:
            raise FormatError("a mean of values that hold both infinities is not a number")
        infinity = most if math.isinf(most) else least
        return Interval(infinity, infinity, infinity, n)
    value = float(above.sum()) / total
    if n == 1:
        return Interval(value, -math.inf, math.inf, 1)
    deviations = (above - value * below) * (n / total)
    largest = float(np.abs(deviations).max())
    if largest <= 8 * np.finfo(np.float64).eps * float(np.abs(above).max()) * n / total:  # rounding alone
        return Interval(value, value, value, n)
    low, high = _standard_ends(deviations / largest, confidence)
    return Interval(value, value + low * largest, value + high * largest, n)


def proportion_interval(
    values: npt.ArrayLike, sizes: npt.ArrayLike | None = None, *, confidence: float = 0.95
) -> Interval:
    """Interval of a share of items, inside [0, 1] and never of length 0 while it rests on a sample.

    values  [u]: the share in every unit; sizes as for `mean_interval`
    Where fewer than five units hold an exception, or a unit is one item, the ends are those of Jeffreys (Brown, Cai and
    DasGupta 2001) for as many independent items as these correlated ones are worth.

    >>> interval = proportion_interval([1.0] * 20, [100] * 20)
    >>> interval.value, round(interval.low, 4), interval.high
    (1.0, 0.9975, 1.0)
    """
    check_confidence(confidence)
    shares, weights = _units(values, sizes)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise FormatError(f"shares must lie in 0 … 1, got {shares.min():g} to {shares.max():g}")
    n = len(shares)
    are_single = bool((weights == 1).all())
    if n > 1 and not are_single and min(int((shares < 1).sum()), int((shares > 0).sum())) >= FEW:
        spread = mean_interval(shares, weights, confidence=confidence)
        return Interval(spread.value, max(0.0, spread.low), min(1.0, spread.high), n)
    value = float(shares @ weights / weights.sum())
    items = max(1.0, float(weights.sum()) / _design_effect(shares, weights, value))
    hits, tail = value * items, (1 - confidence) / 2
    low = 0.0 if hits <= 0 else beta_quantile(tail, hits + 0.5, items - hits + 0.5)
    high = 1.0 if hits >= items else beta_quantile(1 - tail, hits + 0.5, items - hits + 0.5)
    return Interval(value, min(low, value), max(high, value), n)


def quantile_interval(
    values: npt.ArrayLike, unit_of: npt.NDArray[np.integer[Any]], q: float, *, confidence: float = 0.95
) -> Interval:
    """Interval of the `q` quantile of items, each of which belongs to a unit.

    It holds every x for which `q` lies in the interval of the share of items ≤ x (Woodruff 1952, by inversion).

    values   [n]; unit_of [n]: ids of their units
    An end is infinite where the items do not reach that far: 50 items cannot bound their 99th percentile from above.

    >>> interval = quantile_interval(range(1000), np.arange(1000) % 50, 0.5)
    >>> interval.value, 400 < interval.low < 499.5 < interval.high < 600
    (499.5, True)
    """
    check_confidence(confidence)
    if not 0 < q < 1:
        raise SchemeError(f"a quantile lies between 0 and 1, got {q}")
    items = _checked("items", values)
    units = np.asarray(unit_of)
    if units.shape != items.shape:
        raise ShapeError(f"{len(items)} items need as many ids of units, got shape {units.shape}")
    _, index, sizes = np.unique(units, return_inverse=True, return_counts=True)
    ordered = np.sort(items)
    value = float(np.quantile(items, q, method="inverted_cdf" if np.isinf(items).any() else "linear"))
    if len(sizes) == 1:
        return Interval(value, -math.inf, math.inf, 1)

    def below(count: int) -> Interval:
        """Interval of the share of items up to the one at `count` from below, counted from 1."""
        hits = items <= ordered[count - 1] if count else np.zeros(len(items))
        return proportion_interval(np.bincount(index, hits) / sizes, sizes, confidence=confidence)

    first = bisect_left(range(len(items) + 1), True, key=lambda count: below(count).high >= q)
    last = bisect_left(range(len(items) + 1), True, key=lambda count: below(count).low > q)
    low = -math.inf if first == 0 else float(ordered[first - 1])
    high = math.inf if last > len(items) else float(ordered[last - 1])
    return Interval(value, min(low, value), max(high, value), len(sizes))


def exp_interval(interval: Interval) -> Interval:
    """Interval of the exponential: the perplexity of a mean loss, the ratio of perplexities of a mean difference.

    >>> exp_interval(Interval(0.0, -math.inf, 1000.0, 3))
    Interval(value=1.0, low=0.0, high=inf, units=3)
    """
    value, low, high = (math.exp(x) if x < 709 else math.inf for x in (interval.value, interval.low, interval.high))
    return Interval(value, low, high, interval.units)


def root_interval(interval: Interval) -> Interval:
    """Interval of the square root, of a root mean square from its mean square; below 0 counts as 0.

    >>> root_interval(Interval(4.0, -1.0, 9.0, 5))
    Interval(value=2.0, low=0.0, high=3.0, units=5)
    """
    value, low, high = (math.sqrt(max(0.0, x)) for x in (interval.value, interval.low, interval.high))
    return Interval(value, low, high, interval.units)


def units_needed(interval: Interval, bound: float, *, confidence: float = 0.95) -> int:
    """About how many units tell on which side of `bound` the truth lies, four times out of five.

    Supposes that the truth is at `interval.value`, and that the interval was made with `confidence`. As many as there
    are where the bound lies outside already; at most 10^9, which stands for "no number will do".

    >>> units_needed(Interval(1.0, 0.5, 1.5, 20), 1.25)
    164
    """
    check_confidence(confidence)
    if not interval.low <= bound <= interval.high or interval.low == interval.high:
        return interval.units
    distance = abs(interval.value - bound)
    width = interval.high - interval.value if bound > interval.value else interval.value - interval.low
    if not math.isfinite(width):
        return max(UNITS_TO_BEGIN, 2 * interval.units)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    growth = (width / distance * (1 + NormalDist().inv_cdf(POWER) / z)) ** 2 if distance > 0 else math.inf
    return max(interval.units + 1, math.ceil(min(interval.units * growth, MOST_UNITS)))


def _standard_ends(deviations: Float64, confidence: float) -> tuple[float, float]:
    """Ends of the interval of the mean around it, of deviations from it, [n ≥ 2], by Hall's transformation."""
    n = len(deviations)
    variance = float((deviations**2).sum()) / (n - 1)
    error = math.sqrt(variance)
    skewness = float((deviations**3).mean()) / error**3 * (1 + SMALL_SAMPLE / n)
    excess = max(0.0, float((deviations**4).mean()) / variance**2 - 3)
    freedom = max(1.0, math.floor(4 * 2 * n / (2 * n / (n - 1) + excess)) / 4)  # in quarters: few values to compute
    t = t_quantile(freedom, confidence) / math.sqrt(n)
    return -error * _hall_inverse(t, skewness, n), -error * _hall_inverse(-t, skewness, n)


def _hall_inverse(y: float, skewness: float, n: int) -> float:
    """The studentized mean whose transform is `y`: T + γT²/3 + γ²T³/27 + γ/6n inverted, in closed form."""
    if abs(skewness) < 1e-6:
        return y
    return (math.cbrt(1 + skewness * (y - skewness / (6 * n))) - 1) * 3 / skewness


def _design_effect(shares: Float64, weights: Float64, value: float) -> float:
    """How many correlated items are worth one independent item: the spread between units over that of free items."""
    if (weights == 1).all():
        return 1.0
    n, total = len(shares), float(weights.sum())
    free = value * (1 - value) / total
    if free == 0 or n < 2:
        return DESIGN_EFFECT
    spread = float(((weights / total * (shares - value)) ** 2).sum()) * n / (n - 1)
    return max(DESIGN_EFFECT, spread / free)


def _units(values: npt.ArrayLike, sizes: npt.ArrayLike | None) -> tuple[Float64, Float64]:
    means = _checked("units", values)
    weights = np.ones(len(means)) if sizes is None else _checked("sizes", sizes)
    if weights.shape != means.shape:
        raise ShapeError(f"{len(means)} units need as many sizes, got {len(weights)}")
    if not ((weights > 0) & (weights < np.inf)).all():
        raise ShapeError(f"the size of a unit must be positive and finite, got {weights.min():g}")
    return means, weights


def _checked(name: str, values: npt.ArrayLike) -> Float64:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(f"an interval needs one row of {name}, at least one, got shape {array.shape}")
    bad = np.flatnonzero(np.isnan(array))
    if bad.size:
        raise FormatError(f"number {bad[0]} of {len(array)} {name} is NaN: leave out what was not measured")
    return array


def check_confidence(confidence: float) -> None:
    """Raise SchemeError where that is no share between 0 and 1."""
    if not 0 < confidence < 1:
        raise SchemeError(f"confidence lies between 0 and 1, such as 0.95, got {confidence}")
