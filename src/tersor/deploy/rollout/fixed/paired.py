"""A candidate and a control on the same requests, looked at once: McNemar's test, its effects, a paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.evaluation.distributions import beta_quantile, beta_share
from tersor.evaluation.statistics import Interval

__all__ = ["Pairs", "mcnemar", "odds_ratio_interval", "paired_bootstrap", "paired_difference_interval"]

Float64: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[..., Any]

HALVINGS = 60
CELLS = 1 << 22  # resampled numbers held at once


@dataclass(frozen=True, slots=True)
class Pairs:
    """Requests by who was right; SchemeError for negative numbers or none at all.

    wins    only the candidate
    losses  only the control
    ties    both, or neither
    """

    wins: int
    losses: int
    ties: int

    def __post_init__(self) -> None:
        if min(self.wins, self.losses, self.ties) < 0 or not self.total:
            raise SchemeError(f"pairs are counted, at least one, got {self}")

    @property
    def total(self) -> int:
        """All pairs."""
        return self.wins + self.losses + self.ties


def mcnemar(pairs: Pairs) -> float:
    """Return the exact two-sided p-value of "wins and losses are equally likely" (McNemar 1947, binomial form).

    >>> round(mcnemar(Pairs(wins=2, losses=10, ties=88)), 4)
    0.0386
    """
    fewer, differing = min(pairs.wins, pairs.losses), pairs.wins + pairs.losses
    if not differing:
        return 1.0
    return min(1.0, 2 * beta_share(0.5, differing - fewer, fewer + 1))


def paired_difference_interval(pairs: Pairs, *, confidence: float = 0.95) -> Interval:
    """Return the interval of the candidate's share of right answers less the control's.

    Score interval of Tango 1998 (Statistics in Medicine 17): all differences that its score test does not refute.

    >>> interval = paired_difference_interval(Pairs(wins=2, losses=10, ties=88))
    >>> round(interval.value, 3), round(interval.low, 3), round(interval.high, 3)
    (-0.08, -0.158, -0.014)
    """
    z, value = _quantile(confidence), (pairs.wins - pairs.losses) / pairs.total

    def reach(outside: float, sign: float) -> float:
        inside = value
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if sign * _score(pairs, middle) <= z else (inside, middle)
        return inside

    return Interval(value, reach(-1.0, 1.0), reach(1.0, -1.0), pairs.total)


def odds_ratio_interval(pairs: Pairs, *, confidence: float = 0.95) -> Interval:
    """Return the interval of wins over losses, an effect size that ties do not dilute.

    Exact (Clopper and Pearson 1934).

    >>> interval = odds_ratio_interval(Pairs(wins=2, losses=10, ties=88))
    >>> interval.value, round(interval.low, 3), round(interval.high, 3)
    (0.2, 0.021, 0.939)
    """
    wins, losses, tail = pairs.wins, pairs.losses, (1 - _checked(confidence)) / 2
    low = beta_quantile(tail, wins, losses + 1) if wins else 0.0
    high = beta_quantile(1 - tail, wins + 1, losses) if losses else 1.0
    value = wins / losses if losses else math.inf if wins else math.nan
    return Interval(value, low / (1 - low), high / (1 - high) if high < 1 else math.inf, pairs.total)


def paired_bootstrap(
    candidate: npt.ArrayLike,
    control: npt.ArrayLike,
    statistic: Statistic = np.mean,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return the interval of statistic(candidate) − statistic(control), by resampling pairs.

    Bias-corrected and accelerated (Efron 1987, JASA 82). For means `evaluation.statistics.mean_interval` of the
    differences needs no resampling and holds with fewer pairs; this is for medians, percentiles and the like.

    candidate, control  [n] the same requests in the same order, n ≥ 2
    statistic           array, axis=-1 → number of each row, such as numpy's mean, median or a quantile
    """
    ours, theirs = (np.asarray(side, np.float64) for side in (candidate, control))
    if ours.ndim != 1 or ours.shape != theirs.shape or len(ours) < 2:
        raise ShapeError(f"two rows of the same requests are needed, at least 2, got {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()) or resamples < 1:
        raise SchemeError("what is resampled must be finite, and resampled once or more")
    n, rng, tail = len(ours), np.random.default_rng(seed), (1 - _checked(confidence)) / 2

    def differences(index: npt.NDArray[Any]) -> Float64:
        return np.asarray(statistic(ours[index], axis=-1) - statistic(theirs[index], axis=-1), np.float64)

    value, step = float(differences(np.arange(n))), max(1, CELLS // n)
    found = np.concatenate(
        [differences(rng.integers(0, n, (min(step, resamples - at), n))) for at in range(0, resamples, step)]
    )
    left_out = np.array([float(differences(np.delete(np.arange(n), out))) for out in range(n)])
    below = float(((found < value).mean() + (found <= value).mean()) / 2)
    if not 0 < below < 1 or np.ptp(found) == 0:
        return Interval(value, float(found.min()), float(found.max()), n)
    bias, spread = NormalDist().inv_cdf(below), left_out.mean() - left_out
    scale = float((spread**2).sum())
    acceleration = float((spread**3).sum()) / (6 * scale**1.5) if scale else 0.0
    ends = []
    for share in (tail, 1 - tail):
        z = bias + NormalDist().inv_cdf(share)
        ends.append(float(np.quantile(found, NormalDist().cdf(bias + z / (1 - acceleration * z)))))
    return Interval(value, min(ends[0], value), max(ends[1], value), n)


def _score(pairs: Pairs, difference: float) -> float:
    """Tango's score statistic of "the difference is `difference`", falling in it."""
    n, wins, losses = pairs.total, pairs.wins, pairs.losses
    b = -wins - losses + (2 * n - wins + losses) * difference
    c = -losses * difference * (1 - difference)
    rate = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # of losses, the likeliest under the claim
    variance = n * (2 * rate + difference * (1 - difference))
    excess = wins - losses - n * difference
    return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess) if excess else 0.0


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise SchemeError(f"confidence lies between 0 and 1, such as 0.95, got {confidence:g}")
    return confidence


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
