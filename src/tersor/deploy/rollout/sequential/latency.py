"""Latency: how many of the candidate's requests take longer than a quantile of a concurrent control's?

Above a control's 95th percentile lie 5 % of a candidate that is as fast. The threshold is the quantile of an *earlier*
look of the control, and both variants are counted against it in the same look: where load makes both slow, both exceed
it more often, and nothing is said against the candidate. Means are not compared, for a few requests carry them.

Safety is asked of the candidate's latencies divided by `harmful`: if even these exceed the threshold less often than
the control's, then the candidate is not so much slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.sequential.counts import Count, check_look, odds_factors
from tersor.deploy.rollout.sequential.means import MeanInterval
from tersor.deploy.rollout.sequential.standing import Standing, check_purse, standing_of
from tersor.deploy.rollout.sequential.wealth import Wealth, opened

__all__ = ["Latency", "LatencyRules"]

Float64 = npt.NDArray[np.float64]

BETS = (1.25, 2.0)
LEAST = 20  # latencies of the control that a threshold is taken from


@dataclass(frozen=True, slots=True)
class LatencyRules:
    """What slowness is tolerated and which is harmful.

    level       probability that a candidate no slower than tolerated is ever called harmful
    safe_level  … that one that is slower by the factor `harmful` is ever called safe
    quantiles   of the control, at each of which exceedances are counted; bets are spread over them evenly
    tolerated, harmful  factors of latency, 1 ≤ tolerated < harmful
    confidence  of the intervals that are shown, each at all times at once
    reopens     see `Wealth`
    """

    level: float = 0.01
    safe_level: float = 0.05
    quantiles: tuple[float, ...] = (0.5, 0.95)
    tolerated: float = 1.0
    harmful: float = 1.1
    confidence: float = 0.95
    reopens: int = 256

    def __post_init__(self) -> None:
        if not self.quantiles or not all(0 < q < 1 for q in self.quantiles):
            raise SchemeError(f"quantiles lie between 0 and 1, such as 0.95: {self}")
        if not 1 <= self.tolerated < self.harmful < math.inf:
            raise SchemeError(f"1 ≤ tolerated < harmful is needed: {self}")
        if not 0 < self.confidence < 1:
            raise SchemeError(f"confidence lies between 0 and 1, got {self.confidence:g}")


@dataclass(frozen=True, slots=True)
class Latency:
    """The test, with what was counted since the first thresholds were there.

    thresholds  of the quantiles, in seconds, from the last look with enough of the control; none yet: empty
    candidate, control  above each threshold, [quantiles]
    intervals   of the exceedances' difference, halved, plus a half, [quantiles]
    """

    rules: LatencyRules
    harm: Wealth
    safe: Wealth
    candidate: tuple[Count, ...]
    control: tuple[Count, ...]
    intervals: tuple[MeanInterval, ...]
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        number, stakes = len(self.rules.quantiles), _stakes(self.rules)
        check_purse(self.harm, self.rules.level, stakes)
        check_purse(self.safe, self.rules.safe_level, stakes)
        lengths = [len(self.candidate), len(self.control), len(self.intervals), len(self.thresholds) or number]
        if lengths != [number] * 4:
            raise SchemeError(f"{number} quantiles need as many counts, intervals and thresholds, got {lengths}")
        if not all(threshold >= 0 for threshold in self.thresholds):
            raise SchemeError(f"thresholds are seconds, none negative or NaN, got {self.thresholds}")

    @classmethod
    def begin(cls, rules: LatencyRules | None = None) -> Latency:
        """Return the test before the first look."""
        rules = rules or LatencyRules()
        number, stakes = len(rules.quantiles), _stakes(rules)
        none, interval = (Count(0, 0),) * number, (MeanInterval(1 - rules.confidence),) * number
        harm = opened(rules.level, stakes, reopens=rules.reopens)
        return cls(rules, harm, opened(rules.safe_level, stakes), none, none, interval)

    def update(self, candidate_s: npt.ArrayLike, control_s: npt.ArrayLike) -> Latency:
        """Return the test after one more look: the latencies of both since the last one, [n] and [m] seconds ≥ 0.

        The first look with 20 latencies of the control only sets the thresholds.
        """
        ours, theirs = _checked(candidate_s), _checked(control_s)
        found = self
        if self.thresholds and check_look(len(ours), len(theirs)):
            found = self._compared(ours, theirs)
        if len(theirs) < LEAST:
            return found
        quantiles = np.quantile(theirs, self.rules.quantiles, method="inverted_cdf")
        return replace(found, thresholds=tuple(map(float, quantiles)))

    def _compared(self, ours: Float64, theirs: Float64) -> Latency:
        harms, safes, above, below, intervals = [], [], [], [], []
        for threshold, interval in zip(self.thresholds, self.intervals, strict=True):
            tolerated, control = ours / self.rules.tolerated > threshold, theirs > threshold
            candidate, reference = _count(tolerated), _count(control)
            scaled = _count(ours / self.rules.harmful > threshold)
            harms.append(odds_factors(candidate, reference, BETS))
            safes.append(odds_factors(scaled, reference, [1 / bet for bet in BETS]))
            above.append(candidate)
            below.append(reference)
            intervals.append(interval.advance(_paired(tolerated, control)))
        return replace(
            self,
            harm=self.harm.advance(np.concatenate(harms)[None], [len(ours)]),
            safe=self.safe.advance(np.concatenate(safes)[None], [len(ours)]),
            candidate=tuple(old + new for old, new in zip(self.candidate, above, strict=True)),
            control=tuple(old + new for old, new in zip(self.control, below, strict=True)),
            intervals=tuple(intervals),
        )

    @property
    def standing(self) -> Standing:
        """Return where it stands now, with the exceedances at each quantile and their difference's interval."""
        return standing_of(self.harm, self.safe, self.candidate[0].total, dict(self._numbers()))

    def _numbers(self) -> Iterator[tuple[str, float]]:
        rows = zip(self.rules.quantiles, self.candidate, self.control, self.intervals, strict=True)
        for quantile, candidate, control, interval in rows:
            name = f"p{100 * quantile:g}"
            yield f"{name}_candidate_above", candidate.share
            yield f"{name}_control_above", control.share
            yield f"{name}_difference_low", 2 * interval.low - 1
            yield f"{name}_difference_high", 2 * interval.high - 1


def _stakes(rules: LatencyRules) -> tuple[float, ...]:
    number = len(rules.quantiles) * len(BETS)
    return (1 / number,) * number


def _checked(latencies: npt.ArrayLike) -> Float64:
    values = np.asarray(latencies, np.float64)
    if values.ndim != 1 or not (values >= 0).all():
        raise ShapeError(f"latencies are one row of seconds, none negative or NaN, got {values!r:.80}")
    return values


def _count(above: npt.NDArray[np.bool_]) -> Count:
    return Count(int(above.sum()), len(above))


def _paired(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> Float64:
    """Differences of the first exceedances of both in order of time, as numbers in 0 … 1."""
    number = min(len(ours), len(theirs))
    return (1 + ours[:number].astype(np.float64) - theirs[:number]) / 2
