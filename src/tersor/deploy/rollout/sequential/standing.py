"""What a sequential test says at one look, in the numbers of a dashboard and of a decision's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.sequential.spending import Spending
from tersor.deploy.rollout.sequential.wealth import Wealth

__all__ = ["Standing", "Verdict", "check_purse", "split_level", "standing_of"]

Verdict: TypeAlias = Literal["harmful", "safe", "undecided"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a test stands.

    verdict  harmful: "no worse than tolerated" was refuted; safe: "as bad as harmful" was; harmful wins over safe
    to_harm  how near it is to saying harmful, 0 … 1 (log wealth over its boundary, or of probabilities)
    to_safe  … and to saying safe
    samples  of the candidate
    numbers  what was observed, by name
    """

    verdict: Verdict
    to_harm: float
    to_safe: float
    samples: int
    numbers: Mapping[str, float]


def check_purse(purse: Wealth, level: float, stakes: tuple[float, ...]) -> None:
    """Refuse the purse of a stored test that its rules would not have opened; SchemeError."""
    if purse.level != level or purse.stakes != stakes:
        raise SchemeError(
            f"level {purse.level:g}, stakes {purse.stakes}: the rules of the test say {level:g}, {stakes}"
        )


def standing_of(harm: Wealth, safe: Wealth, samples: int, numbers: Mapping[str, float], *exact: Spending) -> Standing:
    """Return the standing of two purses; what was refuted once stays refuted, for both hold at every time at once.

    exact  tests of the claim that `harm` bets against, each with a level of its own: either may refute it
    """
    against: list[Wealth | Spending] = [harm, *exact]
    is_harmful = any(one.is_refuted for one in against)
    verdict: Verdict = "harmful" if is_harmful else "safe" if safe.is_refuted else "undecided"
    return Standing(verdict, max(one.nearness for one in against), safe.nearness, samples, numbers)


def split_level(total: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Split the probability of a wrong rollback over tests; by the union bound they err with at most `total` together.

    The level of a test is fixed for the whole rollout: a step continues the tests of the step before, and spends
    nothing again.

    >>> split_level(0.05, {"agreement": 1, "errors": 1})
    {'agreement': 0.025, 'errors': 0.025}
    """
    if not 0 < total < 1:
        raise SchemeError(f"a level lies between 0 and 1, such as 0.05, got {total:g}")
    if not shares or min(shares.values()) <= 0:
        raise SchemeError(f"every test needs a positive share of the level, got {dict(shares)}")
    whole = sum(shares.values())
    return {name: total * share / whole for name, share in shares.items()}
