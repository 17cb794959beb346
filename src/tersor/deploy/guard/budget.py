"""How many requests may go to the full-precision variant, as a share of all, and what happens when that is spent.

Each purse is a token bucket that requests fill and fallbacks empty: over any run of n requests it pays for no more than
burst + share · n fallbacks. It needs no clock. Purses are apart, so that hints, which are many and cheap to ignore, can
never spend what faults need; a reason may name several, tried in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError

__all__ = ["REASONS", "Budget", "FallbackReason", "Grant", "PurseRules", "Reason"]

FallbackReason: TypeAlias = Literal["low margin", "fault", "error", "timeout", "breaker open"]
PurseName: TypeAlias = Literal["hints", "faults", "outage"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A row: which purses pay for a fallback, in turn, and what the client gets when they are empty."""

    purses: tuple[PurseName, ...]
    when_spent: Literal["answer as is", "refuse"]


REASONS: Mapping[FallbackReason, Reason] = MappingProxyType(
    {
        "low margin": Reason(("hints",), "answer as is"),  # the reply is sound, only less sure
        # An outage in pieces is one: what is paid where all requests fail, is paid where a third of them do. Only then
        # an error, for garbage is worse.
        "fault": Reason(("faults", "hints", "outage"), "refuse"),
        "error": Reason(("faults", "hints", "outage"), "refuse"),
        "timeout": Reason(("faults", "hints", "outage"), "refuse"),
        "breaker open": Reason(("outage",), "refuse"),
    }
)
"""Every reason to fall back."""


@dataclass(frozen=True, slots=True)
class PurseRules:
    """`share` of requests that a purse pays for, 0 to 1; `burst` that it holds at most, and begins with.

    Raises SchemeError outside of this; a burst below 1 could never pay, so it has to come with a share of 0.
    """

    share: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.burst < float("inf")) or (self.share > 0 and self.burst < 1):
            raise SchemeError(
                f"a purse needs a share of 0 to 1 and a burst of 1 or more, got {self.share}, {self.burst}"
            )


DEFAULTS: Mapping[PurseName, PurseRules] = MappingProxyType(
    {
        "hints": PurseRules(0.05, 10),
        "faults": PurseRules(0.2, 50),
        # All requests, and those in flight that fail together: less where full precision cannot carry the traffic.
        "outage": PurseRules(1.0, 50),
    }
)


@dataclass(frozen=True, slots=True)
class Grant:
    """Whether a fallback is paid for: the purse that paid, or was asked last, and the tokens left in it."""

    is_paid: bool
    purse: PurseName
    left: float
    when_spent: Literal["answer as is", "refuse"]


@dataclass(slots=True)
class Budget:
    """The purses of one variant; those that `rules` leaves out have DEFAULTS.

    >>> budget = Budget({"hints": PurseRules(0.5, 1)})
    >>> [budget.take("low margin").is_paid for _ in range(2)]
    [True, False]
    >>> budget.request(), budget.request(), budget.take("low margin").is_paid
    (None, None, True)
    """

    rules: Mapping[PurseName, PurseRules] = field(default_factory=dict)
    _left: dict[PurseName, float] = field(init=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rules) - set(DEFAULTS))
        if unknown:
            raise SchemeError(f"no purse {unknown[0]!r}; there are {', '.join(DEFAULTS)}")
        self.rules = MappingProxyType({**DEFAULTS, **self.rules})
        self._left = {name: rules.burst for name, rules in self.rules.items()}

    def request(self) -> None:
        """Count one request, which fills every purse by its share."""
        for name, rules in self.rules.items():
            self._left[name] = min(rules.burst, self._left[name] + rules.share)

    def take(self, reason: FallbackReason) -> Grant:
        """Pay for one fallback from the first purse of the reason that can, if any."""
        row = REASONS[reason]
        for name in row.purses:
            # A share such as 0.05 adds up to a little less than 1 in floating point.
            if self._left[name] >= 1 - 1e-9:
                self._left[name] = max(0.0, self._left[name] - 1)
                return Grant(True, name, self._left[name], row.when_spent)
        return Grant(False, row.purses[-1], self._left[row.purses[-1]], row.when_spent)

    def left(self, purse: PurseName) -> float:
        """Return the tokens in a purse."""
        return self._left[purse]
