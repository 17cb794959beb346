"""Error rate of the candidate beside that of a concurrent control: is it worse at all, is it worse by a margin?

Harm is a ratio (twice as many errors), for which only errors count; safety is a difference in points (no more than
half a point above), for which good requests count as well: a ratio of rates near 0 would never be settled.

Harm is looked for twice, and the level is split between both: by an exact test of all errors so far, which finds a
candidate soonest that was bad from the beginning, and by bets, of which new rounds begin, for one that turns bad late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential.counts import Count, check_look, odds_factors, rise_factor
from tersor.deploy.rollout.sequential.spending import Spending
from tersor.deploy.rollout.sequential.standing import Standing, check_purse, standing_of
from tersor.deploy.rollout.sequential.wealth import Wealth, opened

__all__ = ["ErrorRate", "ErrorRules"]

# Most is bet below what is to be found soon, four times as many errors: given the number of errors the likelihood ratio
# of 3 grows nearly as fast there, swings less, and does more where errors only double.
BETS = (1.25, 2.0, 3.0)
STAKES = (0.05, 0.25, 0.7)
BETTED = 0.1
"""Share of the level that bets get; the exact test has the rest."""
# For safety the guess itself is bet on, and a candidate that is worse by this share of the margin: near the claim a bet
# grows more slowly and swings less, so that more of those that are no worse are safe in the end.
DOUBT = 0.4
SAFE_STAKES = (0.2, 0.8)
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

    level: float = 0.022
    safe_level: float = 0.05
    tolerated: float = 1.0
    margin: float = 0.005
    reopens: int = 256

    def __post_init__(self) -> None:
        if not (1 <= self.tolerated < 1000 and 0 < self.margin < 1):
            raise SchemeError(f"a tolerated odds ratio of 1 or more and a margin between 0 and 1 are needed: {self}")


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """The test, with all requests and errors so far; `harm` and `exact` bet against, and test, the same claim."""

    rules: ErrorRules
    harm: Wealth
    exact: Spending
    safe: Wealth
    candidate: Count
    control: Count

    def __post_init__(self) -> None:
        check_purse(self.harm, BETTED * self.rules.level, STAKES)
        check_purse(self.safe, self.rules.safe_level, SAFE_STAKES)
        if self.exact.level != (1 - BETTED) * self.rules.level:
            raise SchemeError(f"the exact test has level {self.exact.level:g}, the rules {self.rules.level:g} in all")

    @classmethod
    def begin(cls, rules: ErrorRules | None = None) -> ErrorRate:
        """Return the test before the first look."""
        rules = rules or ErrorRules()
        harm = opened(BETTED * rules.level, STAKES, reopens=rules.reopens)
        exact = Spending((1 - BETTED) * rules.level)
        return cls(rules, harm, exact, opened(rules.safe_level, SAFE_STAKES), Count(0, 0), Count(0, 0))

    def update(self, candidate: Count, control: Count) -> ErrorRate:
        """Return the test after one more look: errors of both variants among the requests since the last one.

        A look without requests of one of them changes nothing.
        """
        if not check_look(candidate.total, control.total):
            return self
        tolerated = self.rules.tolerated
        odds = odds_factors(candidate, control, [bet * tolerated for bet in BETS], tolerated=tolerated)
        margin, (ours, theirs) = self.rules.margin, self._guess()
        doubted = min(theirs + DOUBT * margin, (1 + theirs) / 2)
        rises = [rise_factor(candidate, control, margin, (rate, theirs)) for rate in (ours, doubted)]
        return replace(
            self,
            harm=self.harm.advance(odds[None], [candidate.total]),
            exact=self.exact.advance(candidate, control, tolerated=tolerated),
            safe=self.safe.advance([rises], [candidate.total]),
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
        return standing_of(self.harm, self.safe, self.candidate.total, numbers, self.exact)

    @property
    def harmed_at(self) -> int | None:
        """Requests of the candidate after which it was found harmful; None: it was not."""
        found = [at for at in (self.harm.crossed_at, self.exact.crossed_at) if at is not None]
        return min(found, default=None)
