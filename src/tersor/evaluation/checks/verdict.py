"""What verifying found: checks that passed, failed or could not be made, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Check", "Status", "Verdict"]

Status: TypeAlias = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question.

    detail    one sentence: what was compared and found, or why it was skipped
    problems  one sentence a fault, the worst first; empty unless it failed
    numbers   what was measured, by name, units in the names
    """

    name: str
    status: Status
    detail: str
    problems: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one artefact, in the order in which they were made."""

    artefact: str
    against: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; skipped ones are no failure, and stand in `checks` with their reason."""
        return all(check.status != "failed" for check in self.checks)

    def to_object(self) -> dict[str, object]:
        """Return everything as plain values, ready for JSON."""
        return {"passed": self.passed, **asdict(self)}
