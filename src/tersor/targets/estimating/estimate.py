"""A number that was not measured: between which two it lies, and what that rests on. Or that there is no basis."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.core.errors import SchemeError

__all__ = ["Estimate", "Unknown"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a figure probably is.

    low, high    between which it lies: as often as `assumptions` say
    assumptions  what it rests on, one sentence each, never none
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    assumptions: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high or not self.assumptions:
            raise SchemeError(
                f"{self.name}: an estimate has an interval around it and says what it rests on, got {self.value} "
                f"in {self.low} … {self.high}, {len(self.assumptions)} assumptions"
            )

    def __str__(self) -> str:
        """In words: value, interval, unit."""
        return f"{self.name} about {self.value:.3g} {self.unit} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A figure that nothing here tells, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        """In words."""
        return f"{self.name} unknown: {self.reason}"
