"""Mean quality of the candidate less that of full precision on the same requests, or on requests paired at random.

A quality is any score with a known range: right or wrong, a rating, a similarity. The difference of two scores in 0 … 1
lies in −1 … 1, whose mean is bet on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.sequential.means import MeanInterval, Moments, mean_factors
from tersor.deploy.rollout.sequential.standing import Standing, check_purse, standing_of
from tersor.deploy.rollout.sequential.wealth import Wealth, opened

__all__ = ["Quality", "QualityRules"]

STAKES = (0.5, 0.5)


@dataclass(frozen=True, slots=True)
class QualityRules:
    """What loss of mean quality is tolerated and which is harmful, both in units of the score.

    level       probability that a loss of `tolerated` or less is ever called harmful
    safe_level  … that one of `harmful` or more is ever called safe
    tolerated, harmful  0 ≤ tolerated < harmful < 1
    confidence  of the interval that is shown, at all times at once
    reopens     see `Wealth`
    """

    level: float = 0.005
    safe_level: float = 0.05
    tolerated: float = 0.0
    harmful: float = 0.02
    confidence: float = 0.95
    reopens: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.tolerated < self.harmful < 1:
            raise SchemeError(f"0 ≤ tolerated < harmful < 1 is needed: {self}")
        if not 0 < self.confidence < 1:
            raise SchemeError(f"confidence lies between 0 and 1, got {self.confidence:g}")


@dataclass(frozen=True, slots=True)
class Quality:
    """The test, with an interval of half the difference plus a half, which lies in 0 … 1."""

    rules: QualityRules
    harm: Wealth
    safe: Wealth
    interval: MeanInterval

    def __post_init__(self) -> None:
        check_purse(self.harm, self.rules.level, STAKES)
        check_purse(self.safe, self.rules.safe_level, STAKES)

    @classmethod
    def begin(cls, rules: QualityRules | None = None) -> Quality:
        """Return the test before the first pair."""
        rules = rules or QualityRules()
        harm = opened(rules.level, STAKES, reopens=rules.reopens)
        return cls(rules, harm, opened(rules.safe_level, STAKES), MeanInterval(1 - rules.confidence))

    def update(self, differences: npt.ArrayLike) -> Quality:
        """Return the test after more pairs.

        differences  [n] in −1 … 1: candidate's score less full precision's, in order of time
        """
        given = np.asarray(differences, np.float64)
        if given.ndim != 1 or not ((given >= -1) & (given <= 1)).all():
            raise ShapeError(f"differences of quality are one row of numbers in −1 … 1, got {given!r:.80}")
        values, ones = (1 + given) / 2, np.ones(len(given), np.int64)
        fine, bad = (1 - self.rules.tolerated) / 2, (1 - self.rules.harmful) / 2
        moments: Moments = self.interval.moments
        return replace(
            self,
            harm=self.harm.advance(mean_factors(values, moments, fine, bad), ones),
            safe=self.safe.advance(mean_factors(values, moments, bad, fine), ones),
            interval=self.interval.advance(values),
        )

    @property
    def standing(self) -> Standing:
        """Return where it stands now; the interval of the difference holds it at all times at once."""
        moments, interval = self.interval.moments, self.interval
        mean = 2 * moments.sum / moments.count - 1 if moments.count else float("nan")
        numbers = {"difference": mean, "low": 2 * interval.low - 1, "high": 2 * interval.high - 1}
        return standing_of(self.harm, self.safe, moments.count, numbers)
