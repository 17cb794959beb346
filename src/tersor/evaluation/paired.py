"""Two that answer the same questions: by how much the one is right more often than the other, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError
from tersor.evaluation.statistics import Interval, check_confidence

__all__ = ["Pairs", "paired_difference_interval"]

HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Pairs:
    """Items by which of two was right; SchemeError for negative numbers or none at all.

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

    @classmethod
    def of(cls, candidate: npt.NDArray[np.bool_], control: npt.NDArray[np.bool_]) -> Pairs:
        """Count the items [n] on which each was right."""
        wins, losses = int((candidate & ~control).sum()), int((control & ~candidate).sum())
        return cls(wins, losses, len(candidate) - wins - losses)

    @property
    def total(self) -> int:
        """All pairs."""
        return self.wins + self.losses + self.ties


def paired_difference_interval(pairs: Pairs, *, confidence: float = 0.95) -> Interval:
    """Return the interval of the candidate's share of right answers less the control's.

    Score interval of Tango 1998 (Statistics in Medicine 17): all differences that its score test does not refute.

    >>> interval = paired_difference_interval(Pairs(wins=2, losses=10, ties=88))
    >>> round(interval.value, 3), round(interval.low, 3), round(interval.high, 3)
    (-0.08, -0.158, -0.014)
    """
    check_confidence(confidence)
    z, value = NormalDist().inv_cdf((1 + confidence) / 2), (pairs.wins - pairs.losses) / pairs.total

    def reach(outside: float, sign: float) -> float:
        inside = value
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if sign * _score(pairs, middle) <= z else (inside, middle)
        return inside

    return Interval(value, reach(-1.0, 1.0), reach(1.0, -1.0), pairs.total)


def _score(pairs: Pairs, difference: float) -> float:
    """Tango's score statistic of "the difference is `difference`", falling in it."""
    n, wins, losses = pairs.total, pairs.wins, pairs.losses
    b = -wins - losses + (2 * n - wins + losses) * difference
    c = -losses * difference * (1 - difference)
    rate = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # of losses, the likeliest under the claim
    variance = n * (2 * rate + difference * (1 - difference))
    excess = wins - losses - n * difference
    return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess) if excess else 0.0
