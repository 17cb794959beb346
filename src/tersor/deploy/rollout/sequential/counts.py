"""Two shares compared look by look: the candidate's and that of a control that serves at the same time.

Only what happens in the same look is compared, so that a bad hour, which is bad for both, says nothing. A look is a few
dozen requests or more of each; their numbers, not their outcomes, decide when it ends.

- `odds_factors` bet on *which* variant the hits of a look came from. Given their number that is a hypergeometric draw,
  whatever the base rate is (Fisher 1935), so nothing has to be estimated. `hits_law` is that draw.
- `rise_factor` bets against "the candidate's share is `margin` or more above the control's". Source: Turner, Ly and
  Grünwald 2024, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping", JSPI 230.
  The factor is the likelihood of an alternative over that of the nearest shares for which the claim is true; the log of
  its mean is concave along the claim and 0, with slope 0, at these nearest shares, so that it is never above 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError

__all__ = ["Count", "check_look", "hits_law", "odds_factors", "rise_factor"]

HALVINGS = 50


@dataclass(frozen=True, slots=True)
class Count:
    """`hits` of `total` requests; SchemeError where that cannot be."""

    hits: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.total:
            raise SchemeError(f"{self.hits} of {self.total} requests: hits are 0 or more, and no more than requests")

    @property
    def share(self) -> float:
        """Hits over requests; NaN without any."""
        return self.hits / self.total if self.total else math.nan

    def __add__(self, other: Count) -> Count:
        return Count(self.hits + other.hits, self.total + other.total)


def check_look(candidate: int, control: int) -> bool:
    """Whether a look holds requests of both variants; without, there is nothing to compare."""
    return candidate > 0 and control > 0


def odds_factors(
    candidate: Count, control: Count, odds: Sequence[float], *, tolerated: float = 1.0
) -> npt.NDArray[np.float64]:
    """Return the log factors of bets on odds ratios, [len(odds)], against the claim that the ratio is `tolerated`.

    odds       candidate's odds of a hit over the control's. Bets above `tolerated` are fair for every ratio up to it,
               bets below for every ratio from it on: the likelihood ratio rises with the candidate's hits, or falls
    >>> odds_factors(Count(3, 10), Count(1, 10), [4.0]).round(3).tolist()
    [0.613]
    """
    fewest, draws = _draws(candidate.total, control.total, candidate.hits + control.hits)
    powers = np.log(np.array([tolerated, *odds]))
    terms = draws + powers[:, None] * np.arange(len(draws))
    top = terms.max(axis=1)
    likelihoods = powers * (candidate.hits - fewest) - top - np.log(np.exp(terms - top[:, None]).sum(axis=1))
    return np.asarray(likelihoods[1:] - likelihoods[0], np.float64)


def hits_law(candidate: int, control: int, hits: int, odds: float) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the fewest hits that the candidate can have, and the probabilities of these, one more, …

    candidate, control  requests of both, of which `hits` were hits together
    odds                candidate's odds of a hit over the control's: Fisher's hypergeometric distribution
    >>> fewest, law = hits_law(1, 3, 1, 1.0)
    >>> fewest, law.round(9).tolist()
    (0, [0.75, 0.25])
    """
    fewest, draws = _draws(candidate, control, hits)
    terms = draws + math.log(odds) * np.arange(len(draws))
    law = np.exp(terms - terms.max())
    return fewest, law / law.sum()


def _draws(candidate: int, control: int, hits: int) -> tuple[int, npt.NDArray[np.float64]]:
    """The fewest hits of the candidate, and ln of C(candidate, k) C(control, hits - k) from it on, up to a constant."""
    fewest, most = max(0, hits - control), min(hits, candidate)
    k = np.arange(fewest, most, dtype=np.float64)
    steps = np.log(((candidate - k) * (hits - k)) / ((k + 1) * (control - hits + k + 1)))
    return fewest, np.concatenate([[0.0], np.cumsum(steps)])


def rise_factor(candidate: Count, control: Count, margin: float, guess: tuple[float, float]) -> float:
    """Return the log factor of a bet against "the candidate's share is `margin` or more above the control's".

    guess  the shares of candidate and control that are bet on, each between 0 and 1; they must come from earlier looks.
           0 is returned where the guess does not contradict the claim: then nothing is bet
    """
    ours, theirs = guess
    if not (0 < ours < 1 and 0 < theirs < 1 and 0 < margin < 1):
        raise SchemeError(f"shares and the margin lie between 0 and 1, got {guess}, {margin:g}")
    if ours - theirs >= margin:
        return 0.0
    low, high = max(0.0, ours - margin), min(theirs, 1 - margin)  # the nearest control share lies here
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        shifted = middle + margin
        if not (middle > 0 and shifted < 1):
            break
        slope = control.total * (middle - theirs) / (middle * (1 - middle))
        slope += candidate.total * (shifted - ours) / (shifted * (1 - shifted))
        low, high = (middle, high) if slope < 0 else (low, middle)
    nearest = (low + high) / 2
    return _likelihood(control, theirs, nearest) + _likelihood(candidate, ours, nearest + margin)


def _likelihood(count: Count, share: float, other: float) -> float:
    """Log likelihood of `share` over that of `other`."""
    misses = count.total - count.hits
    return count.hits * math.log(share / other) + misses * (math.log1p(-share) - math.log1p(-other))
