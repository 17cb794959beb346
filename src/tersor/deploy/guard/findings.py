"""What a sentinel can say: the table of sentinels, and a finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

__all__ = ["SENTINELS", "Finding", "Sentinel", "Severity", "found", "has_fault"]

Severity: TypeAlias = Literal["fault", "hint"]
"""A fault: this reply must not be given out. A hint: the full-precision variant might answer better."""


@dataclass(frozen=True, slots=True)
class Sentinel:
    """A row.

    severity  of all its findings
    sees      what `value` and `limit` of a finding count, and in which unit
    is_least  a finding lies below its limit; else above, or at it
    """

    severity: Severity
    sees: str
    is_least: bool = False


SENTINELS: Mapping[str, Sentinel] = MappingProxyType(
    {
        "bad_number": Sentinel("fault", "numbers that are NaN, infinite or no log-probability"),
        "invalid_utf8": Sentinel("fault", "places of the reply that are no UTF-8"),
        "repetition": Sentinel("fault", "tokens of one loop"),
        "entropy_collapse": Sentinel("fault", "mean entropy over a window, nats", is_least=True),
        "entropy_garbage": Sentinel("fault", "mean entropy over a window, as a share of ln(vocabulary)"),
        "constant_top1": Sentinel("fault", "predictions in a row that prefer the same token"),
        "constant_output": Sentinel("fault", "spread of an output over inputs that differ, relative", is_least=True),
        "flat_scores": Sentinel("fault", "rows of scores that are all one number"),
        "length_cap": Sentinel("fault", "share of replies that ran into the length cap, at least (95 %)"),
        "low_margin": Sentinel("hint", "probability of the first choice minus that of the second", is_least=True),
    }
)
"""Every sentinel, by the name that findings carry."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a sentinel saw.

    sentinel  a name of SENTINELS
    place     position of the token that completed it, counted from 0; or the name of a tensor; or "replies"
    value     what was measured, in the unit of the sentinel's row
    limit     what it was compared with
    """

    sentinel: str
    place: int | str
    value: float
    limit: float
    severity: Severity


def found(sentinel: str, place: int | str, value: float, limit: float) -> Finding:
    """Return a finding with the severity that its row has.

    >>> found("low_margin", 7, 0.01, 0.05).severity
    'hint'
    """
    return Finding(sentinel, place, float(value), float(limit), SENTINELS[sentinel].severity)


def has_fault(findings: tuple[Finding, ...]) -> bool:
    """Tell whether any of them is a fault."""
    return any(finding.severity == "fault" for finding in findings)
