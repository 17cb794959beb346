"""What a deployment says of a rollout: its steps, what each needs, and the limits of its tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tersor.core.errors import SchemeError
from tersor.core.records import plain, read_record
from tersor.deploy.rollout.decision import StepRules
from tersor.deploy.rollout.sequential import (
    Agreement,
    AgreementRules,
    AnyTest,
    ErrorRate,
    ErrorRules,
    Latency,
    LatencyRules,
)

__all__ = ["RolloutPlan", "read_plan"]

MOST_LOOK = 10_000


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """SchemeError for what cannot be.

    steps        shares of requests that the candidate answers in turn, percent, rising
    shadow       share of requests that are answered by the candidate too, for comparison, percent
    shadow_time  part of the time that comparisons may take, percent: so many requests meet one
    min_samples  that a step needs: comparisons in the shadow, then requests that the candidate answered
    min_time_s, max_time_s  that a step lasts; after the latter it pauses
    look         requests of the candidate, and of the control, after which both are compared
    starts       whether it begins by itself; else with the action start
    agreement, error_rate, latency  limits of the tests
    """

    steps: tuple[float, ...] = (1.0, 5.0, 25.0, 50.0, 100.0)
    shadow: float = 10.0
    shadow_time: float = 1.0
    min_samples: int = 500
    min_time_s: float = 600.0
    max_time_s: float = 86_400.0
    look: int = 32
    starts: bool = True
    agreement: AgreementRules = field(default_factory=AgreementRules)
    error_rate: ErrorRules = field(default_factory=ErrorRules)
    latency: LatencyRules = field(default_factory=LatencyRules)

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not all(0 < step <= 100 for step in self.steps) or not rising:
            raise SchemeError(f"steps are rising shares in percent, such as 1, 5, 25, 100, got {self.steps}")
        if not 0 < self.shadow <= 100:
            raise SchemeError(f"shadow is a share of requests above 0, percent, got {self.shadow:g}")
        if not 0 < self.shadow_time <= 100:
            raise SchemeError(f"shadow_time is a share of the time above 0, percent, got {self.shadow_time:g}")
        if not 1 <= self.look <= MOST_LOOK:
            raise SchemeError(f"look is a number of requests from 1 to {MOST_LOOK}, got {self.look}")
        self.rules(None)

    def rules(self, step: int | None) -> StepRules:
        """Return what a step needs before the next; None: the shadow.

        The last step with a control beside it needs all tests to say "safe", for after it nothing can be compared; the
        ones before need the agreement, which shadows show.
        """
        is_last = step is not None and (step + 1 >= len(self.steps) or self.steps[step + 1] >= 100)
        required = () if is_last else ("agreement",)
        return StepRules(self.min_samples, self.min_time_s, self.max_time_s, required)

    def begin(self) -> dict[str, AnyTest]:
        """Return the tests before the first request."""
        return {
            "agreement": Agreement.begin(self.agreement),
            "error_rate": ErrorRate.begin(self.error_rate),
            "latency": Latency.begin(self.latency),
        }


def read_plan(place: str, given: dict[str, Any]) -> RolloutPlan:
    """Return what `given`, parsed YAML, says; what it leaves out is as RolloutPlan has it.

    Raises SchemeError for an unknown key or a value that cannot be, FormatError for one of another type.
    """
    made: dict[str, Any] = plain(RolloutPlan())
    for name, value in given.items():
        _check_known(place, [name], made)
        rules = made[name]
        if isinstance(rules, dict) and isinstance(value, dict):
            _check_known(f"{place}.{name}", list(value), rules)
            made[name] = {**rules, **value}
        else:
            made[name] = value
    try:
        return read_record(RolloutPlan, made, place)
    except SchemeError as error:
        raise SchemeError(f"{place}: {error}") from error


def _check_known(place: str, names: list[Any], known: dict[str, Any]) -> None:
    odd = [str(name) for name in names if name not in known]
    if odd:
        raise SchemeError(f"{place}: unknown {', '.join(odd)}; there are {', '.join(known)}")
