"""Paired agreement: the candidate and full precision answer the same request; how often do they say the same?

Wald's sequential probability ratio test in two halves, one for each claim, so that it stays valid after it has said
"safe" and the rollout goes on. Source: Wald 1945, "Sequential tests of statistical hypotheses". Differs: the boundaries
are log(1/level), which hold at every time for ever, not Wald's approximations, which end with the first decision; and
an answer may agree in part (the share of a reply's tokens), for the factor is then at most that of a whole answer with
the same mean (it is convex).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.rollout.sequential.standing import Standing, check_purse, standing_of
from tersor.deploy.rollout.sequential.wealth import Wealth, opened

__all__ = ["Agreement", "AgreementRules"]

STAKES = (1.0,)


@dataclass(frozen=True, slots=True)
class AgreementRules:
    """What agreement is good and what is not; each a share between 0 and 1.

    level     probability that an agreement of `good` or more is ever called harmful
    safe_level  … that one of `bad` or less is ever called safe
    good      tolerated: full precision's agreement with itself (the noise floor), less what one is ready to lose
    bad       below good; between both, either verdict may come
    design    the agreement that is to be found fastest, below good
    reopens   see `Wealth`
    """

    level: float = 0.013
    safe_level: float = 0.05
    good: float = 0.99
    bad: float = 0.97
    design: float = 0.95
    reopens: int = 256

    def __post_init__(self) -> None:
        if not (0 < self.bad < self.good < 1 and 0 < self.design < self.good):
            raise SchemeError(f"0 < bad < good < 1 and 0 < design < good are needed: {self}")


@dataclass(frozen=True, slots=True)
class Agreement:
    """The test, after `harm.samples` paired requests of which `agreed` agreed."""

    rules: AgreementRules
    harm: Wealth
    safe: Wealth
    agreed: float = 0.0

    def __post_init__(self) -> None:
        check_purse(self.harm, self.rules.level, STAKES)
        check_purse(self.safe, self.rules.safe_level, STAKES)
        if not 0 <= self.agreed <= self.harm.samples * (1 + 1e-9):
            raise SchemeError(f"{self.agreed:g} of {self.harm.samples} requests cannot agree")

    @classmethod
    def begin(cls, rules: AgreementRules | None = None) -> Agreement:
        """Return the test before the first request."""
        rules = rules or AgreementRules()
        return cls(rules, opened(rules.level, STAKES, reopens=rules.reopens), opened(rules.safe_level, STAKES))

    def update(self, agreements: npt.ArrayLike) -> Agreement:
        """Return the test after more requests, in order of time.

        agreements  [n]: 1 where both said the same, 0 where not, or the share of a reply that agreed
        """
        shares = np.asarray(agreements, np.float64)
        if shares.ndim != 1 or not ((shares >= 0) & (shares <= 1)).all():
            raise ShapeError(f"agreement is one row of numbers in 0 … 1, got {shares!r:.80}")
        ones = np.ones(len(shares), np.int64)
        rules = self.rules
        return replace(
            self,
            harm=self.harm.advance(_ratio(shares, rules.design, rules.good), ones),
            safe=self.safe.advance(_ratio(shares, rules.good, rules.bad), ones),
            agreed=self.agreed + float(shares.sum()),
        )

    @property
    def standing(self) -> Standing:
        """Return where it stands now."""
        share = self.agreed / self.harm.samples if self.harm.samples else math.nan
        return standing_of(self.harm, self.safe, self.harm.samples, {"agreement": share})


def _ratio(shares: npt.NDArray[np.float64], alternative: float, claim: float) -> npt.NDArray[np.float64]:
    """Log likelihood ratio of every answer, [n, 1]."""
    agree, differ = math.log(alternative / claim), math.log((1 - alternative) / (1 - claim))
    return (shares * agree + (1 - shares) * differ)[:, None]
