"""How far a rollout is, as a record that outlives the gateway, and its moves as pure functions.

created → gated → shadow → canary, step by step → promoted. From each of the middle ones to rolled_back, and to paused
and back; a pause keeps the candidate's share of requests. What ended begins anew as the next attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from tersor.core.errors import FormatError, SchemeError
from tersor.core.records import fields_of, read_record
from tersor.deploy.rollout.decision import Decision
from tersor.deploy.rollout.plan import RolloutPlan

__all__ = ["LIVE", "Move", "Progress", "State", "advanced", "begun", "decided", "ended", "paused", "read_progress",
           "refitted", "resumed", "stands", "weight_of"]  # fmt: skip

State: TypeAlias = Literal["created", "gated", "shadow", "canary", "promoted", "rolled_back", "paused"]
LIVE: tuple[State, ...] = ("created", "gated", "shadow", "canary", "paused")
"""States that something can still come of."""
TRIED: tuple[State, ...] = ("shadow", "canary")
MOST_DECISIONS, MOST_MOVES = 100, 200


@dataclass(frozen=True, slots=True)
class Move:
    """A transition: into what, when, whose, and why."""

    at: str
    state: State
    step: int | None
    weight: float
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A rollout.

    id          that cohorts are drawn by: of the artefacts and the attempt
    primary, candidate  variants, and
    artefacts   what these are: a rollout of other artefacts is another one
    step        of the canary, from 0; None outside
    paused_in   the state that a pause came in
    samples, elapsed_s  of this step, and
    tests       as `rollout.sequential.stored` has them, both as of the last look that was kept
    history     of this attempt and those before, the oldest first; the last is what stands
    decisions   that changed something: {at, state, step, weight, decision}, `decision` as Decision.to_dict has it
    """

    id: str
    primary: str
    candidate: str
    artefacts: tuple[str, ...]
    attempt: int
    state: State
    step: int | None
    paused_in: State | None
    samples: int
    elapsed_s: float
    history: tuple[Move, ...]
    tests: Mapping[str, Any]
    decisions: tuple[Mapping[str, Any], ...]

    @property
    def trying(self) -> State:
        """The state, or the one that is paused."""
        return self.paused_in or self.state


def read_progress(document: object, place: str) -> Progress:
    """Return what `plain` made `document` of; FormatError names what is wrong."""
    if not isinstance(document, dict) or set(document) != set(fields_of(Progress)):
        raise FormatError(f"{place}: a rollout has the keys {', '.join(fields_of(Progress))}")
    tests, decisions = document["tests"], document["decisions"]
    if not isinstance(tests, dict) or not isinstance(decisions, list):
        raise FormatError(f"{place}: tests are an object, decisions a list")
    row: Progress = read_record(Progress, {**document, "tests": {}, "decisions": []}, place)
    return replace(row, tests=tests, decisions=tuple(decisions))


def begun(primary: str, candidate: str, artefacts: tuple[str, ...], last: Progress | None, move: Move) -> Progress:
    """Return a rollout that was created; `last` is the one of the same artefacts before it, if any."""
    attempt = last.attempt + 1 if last else 1
    number = hashlib.sha256("\0".join([*artefacts, str(attempt)]).encode()).hexdigest()[:16]
    history = (*(last.history if last else ()), move)[-MOST_MOVES:]
    return Progress(number, primary, candidate, artefacts, attempt, "created", None, None, 0, 0.0, history, {}, ())


def advanced(now: Progress, plan: RolloutPlan, at: str, who: str, why: str, *, to_end: bool = False) -> Progress:
    """Return the next state on the way to promoted, or that itself; SchemeError where the way has ended."""
    if now.state not in LIVE:
        raise SchemeError(f"the rollout of {now.candidate} is {now.state}")
    order: dict[State, State] = {"created": "gated", "gated": "shadow", "shadow": "canary", "canary": "canary"}
    state, step = order[now.trying], None
    if state == "canary":
        step = 0 if now.step is None else now.step + 1
        if step >= len(plan.steps):
            state, step = "promoted", None
    if to_end:
        state, step = "promoted", None
    return _moved(replace(now, samples=0, elapsed_s=0.0, state=state, step=step, paused_in=None), plan, at, who, why)


def ended(now: Progress, plan: RolloutPlan, at: str, who: str, why: str) -> Progress:
    """Return it rolled back; SchemeError where it is already."""
    if now.state == "rolled_back":
        raise SchemeError(f"the rollout of {now.candidate} is rolled_back")
    return _moved(replace(now, state="rolled_back", step=None, paused_in=None), plan, at, who, why)


def paused(now: Progress, plan: RolloutPlan, at: str, who: str, why: str) -> Progress:
    """Return it paused; SchemeError where there is nothing to pause."""
    if now.state not in TRIED:
        raise SchemeError(f"the rollout of {now.candidate} is {now.state}: nothing to pause")
    return _moved(replace(now, state="paused", paused_in=now.state), plan, at, who, why)


def resumed(now: Progress, plan: RolloutPlan, at: str, who: str, why: str) -> Progress:
    """Return it going on where it was paused, its step's time anew; SchemeError where it is not paused."""
    if now.state != "paused" or now.paused_in is None:
        raise SchemeError(f"the rollout of {now.candidate} is {now.state}, and not paused")
    return _moved(replace(now, elapsed_s=0.0, state=now.paused_in, paused_in=None), plan, at, who, why)


def stands(now: Progress, plan: RolloutPlan) -> bool:
    """Whether the step that lasts is one of the plan's: its steps may have been edited meanwhile."""
    return now.trying != "canary" or _share(now, plan) == weight_of(now)


def refitted(now: Progress, plan: RolloutPlan, at: str, who: str, why: str) -> Progress:
    """Return it at the largest step of the plan that is not above the share it has, or at the first."""
    step = max((n for n, share in enumerate(plan.steps) if share / 100 <= weight_of(now)), default=0)
    return _moved(replace(now, samples=0, elapsed_s=0.0, step=step), plan, at, who, why)


def decided(now: Progress, decision: Decision, at: str) -> Progress:
    """Return it with a decision that changes something, and the numbers that made it."""
    row = {"at": at, "state": now.state, "step": now.step, "weight": weight_of(now)}
    decisions = (*now.decisions, {**row, "decision": decision.to_dict()})[-MOST_DECISIONS:]
    return replace(now, decisions=decisions)


def weight_of(now: Progress) -> float:
    """Return the share of requests that the candidate answers, 0 … 1: as it was written down."""
    return now.history[-1].weight


def _share(now: Progress, plan: RolloutPlan) -> float | None:
    """Return that share as a plan has it; None where it has no such step."""
    if now.state == "promoted":
        return 1.0
    if now.trying != "canary" or now.step is None:
        return 0.0
    return plan.steps[now.step] / 100 if now.step < len(plan.steps) else None


def _moved(made: Progress, plan: RolloutPlan, at: str, who: str, why: str) -> Progress:
    """Add the move into what `made` stands in."""
    share = _share(made, plan)
    assert share is not None, "who moves takes a step that there is"
    move = Move(at, made.state, made.step, share, who, why)
    return replace(made, history=(*made.history, move)[-MOST_MOVES:])
