"""What to do with a candidate at one look: go on to the next step, roll back, wait or pause, and why.

A pure function of the tests, the rules of the step and what was served in it. All three stand in the decision, so that
its record can be decided again and must come out the same. Nothing is ever promoted for want of data: a step needs
enough requests, enough time, and every test that it requires to have said "safe".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tersor.core.errors import FormatError, SchemeError
from tersor.core.records import plain, read_record
from tersor.deploy.rollout.sequential.standing import Standing
from tersor.deploy.rollout.sequential.stored import AnyTest, restored, stored

__all__ = ["Action", "Decision", "StepProgress", "StepRules", "decide", "replayed"]

Action: TypeAlias = Literal["PROMOTE_STEP", "ROLL_BACK", "WAIT", "PAUSE"]


@dataclass(frozen=True, slots=True)
class StepRules:
    """What one step of a rollout needs before the next.

    least_samples  requests that the candidate served (or shadowed) in this step, ≥ 1
    least_s        seconds that the step lasts at least
    most_s         seconds after which it pauses, if it cannot go on by then
    required       tests that must say "safe", by name; empty: all. Tests go on through all steps, so
                   what was shown stays shown
    """

    least_samples: int = 500
    least_s: float = 600.0
    most_s: float = 86_400.0
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.least_samples < 1:
            raise SchemeError(f"a step needs one sample or more, got least_samples = {self.least_samples}")
        if not 0 <= self.least_s < self.most_s or math.isinf(self.least_s):
            raise SchemeError(f"0 ≤ least_s < most_s is needed, got {self.least_s:g} and {self.most_s:g}")


@dataclass(frozen=True, slots=True)
class StepProgress:
    """What happened in this step so far: `samples` of the candidate in `elapsed_s` seconds."""

    samples: int
    elapsed_s: float

    def __post_init__(self) -> None:
        if self.samples < 0 or not self.elapsed_s >= 0:
            raise SchemeError(f"samples and seconds are 0 or more: {self}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and everything that it was decided from.

    reason     for people, with numbers
    standings  of every test, by name
    alarms     what demanded a rollback at once
    tests      the tests as `stored` has them
    """

    action: Action
    reason: str
    standings: Mapping[str, Standing]
    alarms: tuple[str, ...]
    rules: StepRules
    progress: StepProgress
    tests: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**{name: plain(getattr(self, name)) for name in SMALL}, "tests": dict(self.tests)}


SMALL = ("action", "reason", "standings", "alarms", "rules", "progress")


def decide(
    tests: Mapping[str, AnyTest], rules: StepRules, progress: StepProgress, alarms: Sequence[str] = ()
) -> Decision:
    """Decide what follows from the tests at this look.

    alarms  guards that demand a rollback without statistics: a sentinel, a breaker, a crash, a hard limit
    SchemeError where the step requires a test that there is not, or there is none at all.
    """
    required = rules.required or tuple(tests)
    unknown = sorted(set(required) - set(tests))
    if unknown or not tests:
        raise SchemeError(
            f"the step requires {unknown or 'a test'}, there are {sorted(tests) or 'none'}: nothing could be shown"
        )
    standings = {name: test.standing for name, test in tests.items()}
    action, reason = _verdict(standings, required, rules, progress, alarms)
    return Decision(action, reason, standings, tuple(alarms), rules, progress, stored(tests))


def replayed(document: object) -> Decision:
    """Decide again from the record of a decision, `Decision.to_dict`; FormatError where the outcome differs."""
    if not isinstance(document, dict) or set(document) != {*SMALL, "tests"}:
        raise FormatError(f"a decision has the keys {', '.join(SMALL)} and tests")
    alarms = document["alarms"]
    if not isinstance(alarms, list) or not all(isinstance(alarm, str) for alarm in alarms):
        raise FormatError("decision: alarms must be a list of texts")
    rules = read_record(StepRules, document["rules"], "decision: rules")
    progress = read_record(StepProgress, document["progress"], "decision: progress")
    again = decide(restored(document["tests"], "decision: tests"), rules, progress, alarms)
    wrong = [name for name in SMALL if plain(getattr(again, name)) != document[name]]
    if wrong:
        raise FormatError(
            f"decided again, {', '.join(wrong)} differ: it was {document['action']!r:.30}, now {again.action}"
        )
    return again


def _verdict(
    standings: Mapping[str, Standing],
    required: Sequence[str],
    rules: StepRules,
    progress: StepProgress,
    alarms: Sequence[str],
) -> tuple[Action, str]:
    """Return what to do and why; a rollback comes before everything else."""
    harmful = [name for name, standing in standings.items() if standing.verdict == "harmful"]
    if alarms:
        return "ROLL_BACK", "; ".join(alarms)
    if harmful:
        return "ROLL_BACK", "; ".join(f"{name} is harmful: {_spelled(standings[name])}" for name in harmful)
    missing = _missing(standings, required, rules, progress)
    if not missing:
        return "PROMOTE_STEP", f"{', '.join(required)} safe after {progress.samples} samples"
    if progress.elapsed_s >= rules.most_s:
        return "PAUSE", f"{progress.elapsed_s:g} s are over; missing: {'; '.join(missing)}"
    return "WAIT", f"missing: {'; '.join(missing)}"


def _missing(
    standings: Mapping[str, Standing], required: Sequence[str], rules: StepRules, progress: StepProgress
) -> list[str]:
    """Return what the step still needs, each with its numbers."""
    missing = []
    if progress.samples < rules.least_samples:
        missing.append(f"{progress.samples} of {rules.least_samples} samples")
    if progress.elapsed_s < rules.least_s:
        missing.append(f"{progress.elapsed_s:g} of {rules.least_s:g} s")
    undecided = [name for name in required if standings[name].verdict != "safe"]
    missing += [f"{name} {standings[name].to_safe:.0%} of the way to safe" for name in undecided]
    return missing


def _spelled(standing: Standing) -> str:
    """Return the numbers of a standing as text."""
    numbers = ", ".join(f"{name} {number:.4g}" for name, number in standing.numbers.items())
    return f"{numbers} after {standing.samples} samples"
