"""Error rate of the candidate beside that of a concurrent control: is it worse at all, is it worse by a margin?

Harm is a ratio (twice as many errors), for which only errors count; safety is a difference in points (no more than
half a point above), for which good requests count as well: a ratio of rates near 0 would never be settled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential.counts import Count, check_look, odds_factors, rise_factor
from tersor.deploy.rollout.sequential.standing import Standing, check_purse, standing_of
from tersor.deploy.rollout.sequential.wealth import Wealth, opened

__all__ = ["ErrorRate", "ErrorRules"]

# Most is bet below what is to be found soon, four times as many errors: given the number of errors the likelihood ratio
# of 3 grows nearly as fast there, swings less, and does more where errors only double.
BETS = (1.25, 2.0, 3.0)
STAKES = (0.05, 0.25, 0.7)
START = 20.0  # requests that a first guess at the rate of both counts for
PRIOR = (
    3000.0  # requests that the rate of both together counts for in the guess at each: nearly always they are the same
)


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """What error rate is tolerated and which is harmful.

    level       probability that a candidate no worse than tolerated is ever called harmful
    safe_level  … that one that is worse by the margin is ever called safe
    tolerated   odds ratio of errors that is no harm, ≥ 1; 1: no more errors than the control
    margin      rise of the error rate that is never called safe, 0.005: half a point
    reopens     see `Wealth`
    """

    level: float = 0.02
    safe_level: float = 0.05
    tolerated: float = 1.0
    margin: float = 0.005
    reopens: int = 256

    def __post_init__(self) -> None:
        if not (1 <= self.tolerated < 1000 and 0 < self.margin < 1):
            raise SchemeError(f"a tolerated odds ratio of 1 or more and a margin between 0 and 1 are needed: {self}")


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """The test, with all requests and errors so far."""

    rules: ErrorRules
    harm: Wealth
    safe: Wealth
    candidate: Count
    control: Count

    def __post_init__(self) -> None:
        check_purse(self.harm, self.rules.level, STAKES)
        check_purse(self.safe, self.rules.safe_level, (1.0,))

    @classmethod
    def begin(cls, rules: ErrorRules | None = None) -> ErrorRate:
        """Return the test before the first look."""
        rules = rules or ErrorRules()
        harm = opened(rules.level, STAKES, reopens=rules.reopens)
        return cls(rules, harm, opened(rules.safe_level, (1.0,)), Count(0, 0), Count(0, 0))

    def update(self, candidate: Count, control: Count) -> ErrorRate:
        """Return the test after one more look: errors of both variants among the requests since the last one.

        A look without requests of one of them changes nothing.
        """
        if not check_look(candidate.total, control.total):
            return self
        tolerated = self.rules.tolerated
        odds = odds_factors(candidate, control, [bet * tolerated for bet in BETS], tolerated=tolerated)
        rise = rise_factor(candidate, control, self.rules.margin, self._guess())
        return replace(
            self,
            harm=self.harm.advance(odds[None], [candidate.total]),
            safe=self.safe.advance([[rise]], [candidate.total]),
            candidate=self.candidate + candidate,
            control=self.control + control,
        )

    def _guess(self) -> tuple[float, float]:
        """Rates of candidate and control as the looks so far have them, drawn together while requests are few."""
        both, start = self.candidate + self.control, self.rules.margin / 4
        rate = (both.hits + start * START) / (both.total + START)
        ours, theirs = ((count.hits + rate * PRIOR) / (count.total + PRIOR) for count in (self.candidate, self.control))
        return ours, theirs

    @property
    def standing(self) -> Standing:
        """Return where it stands now."""
        numbers = {"candidate": self.candidate.share, "control": self.control.share}
        return standing_of(self.harm, self.safe, self.candidate.total, numbers)
