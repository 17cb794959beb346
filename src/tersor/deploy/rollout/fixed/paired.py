"""A candidate and a control on the same requests, looked at once: McNemar's test, its effects, a paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.evaluation.distributions import beta_quantile, beta_share
from tersor.evaluation.paired import Pairs
from tersor.evaluation.statistics import Interval, check_confidence

__all__ = ["mcnemar", "odds_ratio_interval", "paired_bootstrap"]

Float64: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[..., Any]

CELLS = 1 << 22  # resampled numbers held at once


def mcnemar(pairs: Pairs) -> float:
    """Return the exact two-sided p-value of "wins and losses are equally likely" (McNemar 1947, binomial form).

    >>> round(mcnemar(Pairs(wins=2, losses=10, ties=88)), 4)
    0.0386
    """
    fewer, differing = min(pairs.wins, pairs.losses), pairs.wins + pairs.losses
    if not differing:
        return 1.0
    return min(1.0, 2 * beta_share(0.5, differing - fewer, fewer + 1))


def odds_ratio_interval(pairs: Pairs, *, confidence: float = 0.95) -> Interval:
    """Return the interval of wins over losses, an effect size that ties do not dilute.

    Exact (Clopper and Pearson 1934).

    >>> interval = odds_ratio_interval(Pairs(wins=2, losses=10, ties=88))
    >>> interval.value, round(interval.low, 3), round(interval.high, 3)
    (0.2, 0.021, 0.939)
    """
    check_confidence(confidence)
    wins, losses, tail = pairs.wins, pairs.losses, (1 - confidence) / 2
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
    check_confidence(confidence)
    ours, theirs = (np.asarray(side, np.float64) for side in (candidate, control))
    if ours.ndim != 1 or ours.shape != theirs.shape or len(ours) < 2:
        raise ShapeError(f"two rows of the same requests are needed, at least 2, got {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()) or resamples < 1:
        raise SchemeError("what is resampled must be finite, and resampled once or more")
    n, rng, tail = len(ours), np.random.default_rng(seed), (1 - confidence) / 2

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
