"""An exact test of the candidate's hits, which spends its level bit by bit as hits come in, and never ends.

Given how many hits each look had, in candidate and control together, those of the candidate are a hypergeometric draw
at the edge of the claim, whatever the base rate is. So the law of the candidate's hits over all looks, in rollouts that
were not refuted so far, is known exactly; and at each look the claim is refuted from the least number of hits on that
keeps the probability of ever having refuted a true one within what may be spent by then. What may be spent follows from
the hits of both together, never from whose they are. Candidates that are better than the edge have fewer hits at every
look (the draws are ordered by their odds), and are refuted less often.

Bets (see `wealth`) reach their level only where evidence lands on the boundary; this spends all of its own. It looks at
all hits so far, so that a candidate that turns bad late hides behind its good time: for that there are bets.

Source: Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials", Biometrika 70; exact laws of discrete
data as in Jennison and Turnbull 1999, chapter 12. Differs: there is no last look, and what is left is spent for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential.counts import Count, hits_law

__all__ = ["Spending"]

Float64: TypeAlias = npt.NDArray[np.float64]

HORIZON = 5.5
"""Information at which most is spent: the variance of the candidate's hits, if it is no worse. Four times as many
errors are then five or six standard deviations away, wherever the candidate has a small share of the requests."""
EARLY, POWER = 0.9, 1.5
"""Share of the level that is spent up to the horizon, and how it grows until then: the power of the information."""
NEGLIGIBLE = 1e-9
"""Of the level: paths at both ends of the law that are less likely are taken as refuted, and paid for."""
MOST = 100_000


@dataclass(frozen=True, slots=True)
class Spending:
    """What was looked at, and the law of the candidate's hits if the claim holds.

    level        probability that a true claim is ever refuted
    information  so far
    spent        probability that a true claim was refuted by now, given the hits of both together at each look
    hits         of the candidate
    first, alive probabilities of first, first + 1, … hits without having been refuted; their sum is 1 - spent
    nearness     how near the hits came to the boundary at the last look, 0 … 1 in logarithms; 1: refuted
    samples      requests of the candidate
    crossed_at   sample at which the claim was refuted; None: it was not. Nothing changes from then on but samples
    """

    level: float
    information: float = 0.0
    spent: float = 0.0
    hits: int = 0
    first: int = 0
    alive: tuple[float, ...] = (1.0,)
    nearness: float = 0.0
    samples: int = 0
    crossed_at: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise SchemeError(f"a level lies between 0 and 1, such as 0.01, got {self.level:g}")
        if not (0 <= self.information < math.inf and 0 <= self.spent <= self.level * (1 + 1e-6)):
            raise SchemeError(f"information is 0 or more, and no more than the level is spent: {self.spent:g}")
        if not 1 <= len(self.alive) <= MOST or not all(0 <= share <= 1 for share in self.alive):
            raise SchemeError(f"the law of the hits has {len(self.alive)} probabilities, each between 0 and 1")
        if abs(math.fsum(self.alive) + self.spent - 1) > 1e-6 or self.first < 0 or not 0 <= self.nearness <= 1:
            raise SchemeError("the law of the hits and what is spent sum to 1, and nearness lies between 0 and 1")

    @property
    def is_refuted(self) -> bool:
        """Whether the claim was refuted, now or earlier."""
        return self.crossed_at is not None

    def advance(self, candidate: Count, control: Count, *, tolerated: float = 1.0) -> Spending:
        """Return the test after one more look, in which both served one request or more.

        tolerated  the candidate's odds of a hit over the control's, at the edge of the claim
        """
        samples = self.samples + candidate.total
        if self.is_refuted:
            return replace(self, samples=samples)
        fewest, law = hits_law(candidate.total, control.total, candidate.hits + control.hits, tolerated)
        places = np.arange(len(law))
        information = self.information + float((places - places @ law) ** 2 @ law)
        fewest, law = _trimmed(fewest, law, NEGLIGIBLE * self.level)
        first, alive, hits = self.first + fewest, np.convolve(self.alive, law), self.hits + candidate.hits
        allowance = max(0.0, self.level * _share(information) - self.spent)
        tails = np.cumsum(alive[::-1])[::-1]  # probability of as many hits or more, without having been refuted
        boundary = int(np.searchsorted(-tails, -allowance))  # the first that is not above the allowance
        place = max(0, hits - first)
        is_over = place >= boundary
        nearness = 1.0 if is_over else _nearness(float(tails[place]), allowance)
        first, alive = _trimmed(first, alive[: max(1, boundary)], NEGLIGIBLE * self.level)
        return Spending(
            self.level, information, max(self.spent, 1.0 - math.fsum(alive)), hits, first, tuple(map(float, alive)),
            nearness, samples, samples if is_over else None,
        )  # fmt: skip


def _share(information: float) -> float:
    """The part of the level that may be spent at so much information."""
    times = information / HORIZON
    return EARLY * times**POWER if times < 1 else 1 - (1 - EARLY) / times


def _nearness(tail: float, allowance: float) -> float:
    """How far the probability of what was seen has fallen towards what may be spent."""
    if not 0 < allowance < 1 or not 0 < tail < 1:
        return 0.0
    return min(1.0, max(0.0, math.log(tail) / math.log(allowance)))


def _trimmed(first: int, law: Float64, least: float) -> tuple[int, Float64]:
    """Cut off both ends of a law that together are less likely than twice `least`."""
    low = int(np.searchsorted(np.cumsum(law), least))
    high = len(law) - int(np.searchsorted(np.cumsum(law[::-1]), least))
    return (first + low, law[low:high]) if low < high else (first, law)
