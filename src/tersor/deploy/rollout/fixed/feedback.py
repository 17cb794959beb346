"""What people said of two variants that answered at the same time: shares, their difference, and whether it is enough.

One look at a number of labels that was set before. Looked at again and again, an interval of 95 % leaves out what is
true far more often than once in twenty: whoever has to stop early takes the sequential tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.fixed.shares import difference_interval, h_interval
from tersor.deploy.rollout.fixed.sizes import requests_for_shares
from tersor.deploy.rollout.sequential.counts import Count
from tersor.evaluation.statistics import Interval

__all__ = ["Opinions", "opinions"]

LOSS = 0.02
"""Difference of shares that is worth finding, where nobody says another."""


@dataclass(frozen=True, slots=True)
class Opinions:
    """Labels of two variants; intervals are None while one of them has no label.

    candidate, control  right answers of those labelled
    difference  candidate's share less control's
    effect      Cohen's h: 0.2 is called small, 0.5 medium, 0.8 large
    loss        difference that is to be found
    needed      labels of the candidate that find it, 80 % of the time at a level of 5 %, one-sided, with as many labels
                of the control for each of its own as there are now; None while nobody knows how often the control is
                right
    """

    candidate: Count
    control: Count
    difference: Interval | None
    effect: Interval | None
    loss: float
    needed: int | None

    @property
    def is_enough(self) -> bool:
        """Whether the candidate has the labels that were needed."""
        return self.needed is not None and self.candidate.total >= self.needed


def opinions(candidate: Count, control: Count, *, loss: float = LOSS, confidence: float = 0.95) -> Opinions:
    """Compare what people said of a candidate with what they said of its control.

    loss  difference of shares that is worth finding: 0.02 are two answers in a hundred

    >>> found = opinions(Count(85, 100), Count(890, 1000))
    >>> found.difference is not None and round(found.difference.value, 3), found.needed, found.is_enough
    (-0.04, 1905, False)
    """
    if not 0 < loss < 1:
        raise SchemeError(f"a difference of shares lies between 0 and 1, such as 0.02, got {loss:g}")
    if not (candidate.total and control.total):
        return Opinions(candidate, control, None, None, loss, None)
    return Opinions(
        candidate,
        control,
        difference_interval(candidate, control, confidence=confidence),
        h_interval(candidate, control, confidence=confidence),
        loss,
        _needed(candidate, control, loss),
    )


def _needed(candidate: Count, control: Count, loss: float) -> int | None:
    """Labels that find a loss from the control's share; half an answer of either kind keeps it from 0 and 1."""
    usual = (control.hits + 0.5) / (control.total + 1)
    lower = usual - loss
    if lower <= 0:
        return None
    ratio = control.total / candidate.total
    return requests_for_shares(lower, usual, ratio=ratio)
