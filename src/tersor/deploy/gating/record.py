"""What a gate found: one check a row, each passed, failed or open, with its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from tersor.core.evaluation import Limit
from tersor.evaluation.checks.verdict import Check

__all__ = ["GateCheck", "GateRecord", "Outcome", "of_check", "of_limit"]

Outcome: TypeAlias = Literal["PASS", "FAIL", "INCONCLUSIVE"]
_OF_CHECK: Mapping[str, Outcome] = {"passed": "PASS", "failed": "FAIL", "skipped": "INCONCLUSIVE"}
_OF_LIMIT: Mapping[str, Outcome] = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}
SCHEMA = "tersor.gate/1"


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One question about an artefact.

    detail    one sentence: what was looked at and found
    problems  what is wrong, the worst first
    numbers   what was measured, units in the names
    """

    name: str
    outcome: Outcome
    detail: str
    problems: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateRecord:
    """All checks of one artefact, in the order in which they were made.

    files     name → SHA-256 of what was judged: the verdict is about these bytes alone
    baseline  what quality was compared with; empty: nothing
    """

    artefact: str
    baseline: str
    files: Mapping[str, str]
    checks: tuple[GateCheck, ...]
    versions: Mapping[str, str]
    machine: str
    date: str
    command: str = ""

    @property
    def outcome(self) -> Outcome:
        """FAIL where a check failed, INCONCLUSIVE where one could not be settled, else PASS."""
        found = {check.outcome for check in self.checks}
        return "FAIL" if "FAIL" in found else "INCONCLUSIVE" if "INCONCLUSIVE" in found or not found else "PASS"

    def to_object(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON and for the registry."""
        return {"schema": SCHEMA, "outcome": self.outcome, **asdict(self)}


def of_check(check: Check) -> GateCheck:
    """Return a check of `tersor verify` as one of a gate: what could not be looked at is not passed."""
    return GateCheck(check.name, _OF_CHECK[check.status], check.detail, check.problems, check.numbers)


def of_limit(limit: Limit) -> GateCheck:
    """Return a limit of `tersor evaluate` as a check of a gate."""
    return GateCheck(limit.metric, _OF_LIMIT[limit.outcome], limit.reason, numbers={"limit": limit.bound})
