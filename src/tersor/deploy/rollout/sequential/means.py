"""The mean of bounded numbers: bets against a mean, and an interval that holds the truth at every time at once.

Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86: the
approximate GRAPA bet (section B.3) and the predictable plug-in empirical Bernstein interval (theorem 2). Nothing is
supposed of the numbers but their range, and that the mean of each, given those before, is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError

__all__ = ["MeanInterval", "Moments", "mean_factors"]

Float64 = npt.NDArray[np.float64]

CAP = 0.75  # share of the money that one bet may lose
BERNSTEIN_CAP = 0.5
FIRST_VARIANCE = 0.25


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares of numbers in 0 … 1, of which bets are made."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 0 or not (math.isfinite(self.sum) and math.isfinite(self.squares)):
            raise SchemeError(f"a count is 0 or more and sums are finite: {self}")

    def add(self, values: Float64) -> Moments:
        """Return the moments of more numbers."""
        return Moments(
            self.count + len(values), self.sum + float(values.sum()), self.squares + float((values**2).sum())
        )

    def before(self, values: Float64) -> tuple[Float64, Float64]:
        """Return mean and variance before each of `values`, [n] each, drawn to ½ and ¼ as if by one number more."""
        counts = self.count + 1.0 + np.arange(len(values))
        means = (0.5 + self.sum + np.concatenate([[0.0], np.cumsum(values)[:-1]])) / counts
        squares = self.squares + np.concatenate([[0.0], np.cumsum(values**2)[:-1]])
        spread = (FIRST_VARIANCE + 0.25 + squares) / counts - means**2
        return means, np.maximum(spread, 1e-12)


def mean_factors(values: Float64, moments: Moments, claim: float, design: float) -> Float64:
    """Return the log factors of two bets against "the mean is on the other side of `claim` than `design`", [n, 2].

    values   [n] in 0 … 1, in order of time
    moments  of the numbers before them
    claim    the mean at the border of the claim; a `design` below it makes bets on smaller means, one above, on larger
    design   the mean that the second bet is best for; the first is best for what was seen so far
    """
    sign = 1.0 if design > claim else -1.0
    limit = CAP / (claim if sign > 0 else 1 - claim)
    means, variances = moments.before(values)
    seen, hoped = sign * (means - claim), abs(design - claim)
    bets = np.stack([seen / (variances + seen**2), hoped / (variances + hoped**2)], axis=1)
    return np.log1p(sign * np.clip(bets, 0.0, limit) * (values - claim)[:, None])


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """An interval of the mean that holds it at all times at once, with probability 1 − level.

    low, high  the ends, 0 … 1, the narrowest so far
    weights, sums, penalty  Σ λ, Σ λ x and Σ v ψ(λ) of the paper
    deviations  Σ (x − running mean)²
    """

    level: float
    moments: Moments = Moments()
    weights: float = 0.0
    sums: float = 0.0
    penalty: float = 0.0
    deviations: float = FIRST_VARIANCE
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise SchemeError(f"a level lies between 0 and 1, such as 0.05, got {self.level:g}")

    def advance(self, values: Float64) -> MeanInterval:
        """Return the interval after more numbers in 0 … 1, [n]."""
        if not len(values):
            return self
        n = self.moments.count + 1.0 + np.arange(len(values))
        before, _ = self.moments.before(values)
        after = (before * n + values) / (n + 1)
        deviations = self.deviations + np.concatenate([[0.0], np.cumsum((values - after) ** 2)])
        wager = 2 * math.log(2 / self.level) / (deviations[:-1] * np.log1p(n))
        bets = np.minimum(np.sqrt(wager), BERNSTEIN_CAP)
        weights = self.weights + np.cumsum(bets)
        sums = self.sums + np.cumsum(bets * values)
        penalty = self.penalty + np.cumsum((values - before) ** 2 * (-np.log1p(-bets) - bets))
        radius = (math.log(2 / self.level) + penalty) / weights
        return replace(
            self,
            moments=self.moments.add(values),
            weights=float(weights[-1]),
            sums=float(sums[-1]),
            penalty=float(penalty[-1]),
            deviations=float(deviations[-1]),
            low=max(self.low, float((sums / weights - radius).max())),
            high=min(self.high, float((sums / weights + radius).min())),
        )
