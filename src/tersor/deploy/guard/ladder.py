"""What answers a request: the quantized variant, the full-precision one, or an error; and the numbers behind it.

The way of one request:

    case = ladder.admit(now, ...)      quantized, full precision (breaker open) or refuse
    ladder.judge(case, ..., now)       after every token, or once: wait, quantized, full precision, refuse or end
    ladder.finish(case, ..., now)      once, where it was admitted to the quantized one: feeds the breaker and rates

A stream is decided before its first token leaves: the first `hold_back` tokens are held and judged. After that nothing
is ever spliced: a fault found later ends the stream with finish_reason "error", which is counted. Everything is
arithmetic on what the caller hands in; nothing waits, and nothing is sent from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError
from tersor.deploy.guard.breaker import Breaker, Outcome, Permit, State, Verdict
from tersor.deploy.guard.budget import REASONS, Budget, FallbackReason, Grant
from tersor.deploy.guard.findings import Finding, has_fault
from tersor.deploy.guard.limits import Limits
from tersor.deploy.guard.rates import Rate, TimeWindow
from tersor.deploy.guard.sentinels import FinishReason, LengthCaps

__all__ = [
    "Action",
    "Case",
    "Decision",
    "Failure",
    "Ladder",
    "LadderRules",
    "Progress",
    "Rates",
    "Reason",
    "Settled",
    "outcome_of",
]

Action: TypeAlias = Literal["wait", "quantized", "full precision", "refuse", "end"]
"""wait: hold what there is, nothing is decided. quantized: send what there is, and go on. end: close a stream that has
begun with finish_reason "error". The others are final as well."""
Failure: TypeAlias = Literal["error", "timeout"]
Reason: TypeAlias = (
    FallbackReason | Literal["sound", "held back", "hint ignored", "budget spent", "no time", "no full precision"]
)


WITHOUT: Mapping[str, Action] = MappingProxyType({"answer as is": "quantized", "refuse": "refuse"})
"""What is done where full precision cannot be had: a sound reply goes out as it is, all else is an error."""
COUNTED: tuple[Action, ...] = ("full precision", "refuse", "end")
"""Last decisions whose shares are the fallbacks, refusals and ended of `Rates`."""


@dataclass(frozen=True, slots=True)
class LadderRules:
    """SchemeError for what cannot be.

    hold_back  tokens of a stream that are judged before the first leaves; 0: none, every fault ends the stream
    window_s   seconds over which `Ladder.rates` looks back
    """

    hold_back: int = 16
    window_s: float = 300.0

    def __post_init__(self) -> None:
        if self.hold_back < 0 or not 0 < self.window_s < math.inf:
            raise SchemeError(f"hold_back must be 0 or more and window_s positive: {self}")


@dataclass(frozen=True, slots=True)
class Case:
    """A request on its way, with the first decision on it; `permit` where the quantized variant takes it."""

    is_streaming: bool
    permit: Permit | None
    decision: Decision


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a quantized attempt is, and the clients' patience.

    tokens       made so far
    sent         of these, that have left for the client; with one or more there is no way back
    is_finished  no more will come
    findings     of the sentinels, so far
    failure      of the engine, None while there is none
    remaining_s  seconds to the deadline; infinite without one
    full_s       seconds that the full-precision variant needs for the whole reply; None where there is no such variant
    """

    tokens: int = 0
    sent: int = 0
    is_finished: bool = False
    findings: tuple[Finding, ...] = ()
    failure: Failure | None = None
    remaining_s: float = math.inf
    full_s: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why, and every number that was looked at.

    action, reason  see Action; the reason of a refusal or of an answer as is, is what stood in the way
    cause           what asked for the fallback; None where nothing did
    state, verdict, faults, errors  of the breaker
    grant           of the budget, None where it was not asked
    """

    at: float
    action: Action
    reason: Reason
    cause: FallbackReason | None
    is_streaming: bool
    progress: Progress
    hold_back: int
    state: State
    verdict: Verdict
    faults: Rate
    errors: Rate
    grant: Grant | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """Over the last seconds: of quantized attempts faults, errors and length caps, of requests the rest, in this order.

    errors hold timeouts; `ended` counts streams that had begun and were closed as an error
    """

    faults: Rate
    errors: Rate
    caps: Rate
    fallbacks: Rate
    refusals: Rate
    ended: Rate


@dataclass(frozen=True, slots=True)
class Settled:
    """What an attempt counted as, and the finding over many replies that it completed, if any."""

    outcome: Outcome
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class _Choice:
    """The part of a decision that is decided."""

    action: Action
    reason: Reason
    cause: FallbackReason | None = None
    grant: Grant | None = None


class Ladder:
    """The policy of one quantized variant.

    breaker, budget  its own; `rules` of the ladder itself; `limits` of the length caps
    """

    def __init__(
        self,
        breaker: Breaker | None = None,
        budget: Budget | None = None,
        rules: LadderRules | None = None,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.breaker = Breaker() if breaker is None else breaker
        self.budget = Budget() if budget is None else budget
        self.rules = LadderRules() if rules is None else rules
        self._caps = LengthCaps(limits)
        self._window = TimeWindow(self.rules.window_s, kinds=len(fields(Rates)))

    def admit(
        self, now: float, *, is_streaming: bool, remaining_s: float = math.inf, full_s: float | None = 0.0
    ) -> Case:
        """Decide who takes a new request, and count it. `remaining_s` and `full_s` as in Progress.

        Without full precision an open breaker sends nobody away: it would take from all clients what some requests
        cannot be answered with.
        """
        self.budget.request()
        progress = Progress(remaining_s=remaining_s, full_s=full_s)
        permit = self.breaker.ask(now, has_other=full_s is not None)
        if permit is not None:
            choice = _Choice("quantized", "sound")
            return Case(is_streaming, permit, self._decision(choice, is_streaming, progress, now))
        decision = self._decision(self._fall_back("breaker open", progress), is_streaming, progress, now)
        self._window.add(now, None, None, None, *_counted(decision))
        return Case(is_streaming, None, decision)

    def judge(self, case: Case, progress: Progress, now: float) -> Decision:
        """Decide on a quantized attempt; pure but for the budget, which pays for a fallback.

        "wait" and, of a stream, "quantized" ask to be called again: after the next token, with `sent` counted up.
        With anything else the attempt is over: stop it, act on the decision, call `finish`.
        Raises SchemeError for a case that the quantized variant did not take, or where more was sent than made.
        """
        if case.permit is None:
            raise SchemeError("there is nothing to judge: the quantized variant did not take this request")
        if not 0 <= progress.sent <= progress.tokens:
            raise SchemeError(f"{progress.sent} tokens sent of {progress.tokens} made")
        choose = self._after_sending if progress.sent else self._before_sending
        return self._decision(choose(progress, case.is_streaming), case.is_streaming, progress, now)

    def finish(self, case: Case, progress: Progress, decision: Decision, ended: FinishReason, now: float) -> Settled:
        """Count what became of a quantized attempt: once, whoever answered in the end.

        decision  the last one
        ended     how the attempt ended; "cancelled" by the client or by us says nothing about the variant, unless
                  there are faults or a failure
        Raises SchemeError for a case that the quantized variant did not take: that was counted when it was admitted.
        """
        if case.permit is None:
            raise SchemeError("there is nothing to finish: the quantized variant did not take this request")
        finding, outcome = self._caps.add(ended), outcome_of(progress, ended)
        if finding is not None and ended == "length" and outcome == "ok":
            outcome = "fault"
        self.breaker.record(case.permit, outcome, now)
        is_told, is_whole = outcome != "cancelled", ended in ("stop", "length")
        self._window.add(
            now,
            outcome == "fault" if is_told else None,
            outcome in ("error", "timeout") if is_told else None,
            ended == "length" if is_whole else None,
            *_counted(decision),
        )
        return Settled(outcome, finding)

    def rates(self, now: float) -> Rates:
        """Return the shares over the last `window_s` seconds."""
        return Rates(*self._window.rates(now))

    def _before_sending(self, progress: Progress, is_streaming: bool) -> _Choice:
        """Nothing has left: everything is still possible."""
        is_judged = progress.is_finished or (is_streaming and progress.tokens >= self.rules.hold_back)
        cause = _cause(progress)
        # A fault is one at once; of a hint, the whole hold-back may still say more.
        if cause is None or (cause == "low margin" and not is_judged):
            return _Choice("quantized", "sound") if is_judged else _Choice("wait", "held back", cause)
        return self._fall_back(cause, progress)

    def _after_sending(self, progress: Progress, _is_streaming: bool) -> _Choice:
        """There is no way back: go on, or end."""
        cause = _cause(progress)
        if cause is None:
            return _Choice("quantized", "sound")
        return _Choice("quantized", "hint ignored", cause) if cause == "low margin" else _Choice("end", cause, cause)

    def _fall_back(self, cause: FallbackReason, progress: Progress) -> _Choice:
        """Full precision if it is there, in time and paid for, in this order: what cannot be used is not paid."""
        grant: Grant | None = None
        obstacle: Reason = "budget spent"
        if progress.full_s is None:
            obstacle = "no full precision"
        elif progress.full_s > progress.remaining_s:
            obstacle = "no time"
        else:
            grant = self.budget.take(cause)
            if grant.is_paid:
                return _Choice("full precision", cause, cause, grant)
        return _Choice(WITHOUT[REASONS[cause].when_spent], obstacle, cause, grant)

    def _decision(self, choice: _Choice, is_streaming: bool, progress: Progress, now: float) -> Decision:
        state, (faults, errors) = self.breaker.state(now), self.breaker.rates(now)
        return Decision(
            at=now,
            action=choice.action,
            reason=choice.reason,
            cause=choice.cause,
            is_streaming=is_streaming,
            progress=progress,
            hold_back=self.rules.hold_back,
            state=state,
            verdict=self.breaker.verdict,
            faults=faults,
            errors=errors,
            grant=choice.grant,
        )


def _counted(decision: Decision) -> list[bool]:
    return [decision.action == action for action in COUNTED]


def outcome_of(progress: Progress, ended: FinishReason) -> Outcome:
    """Return what an attempt says about its variant; a hint says nothing bad.

    >>> outcome_of(Progress(failure="timeout"), "error"), outcome_of(Progress(), "cancelled")
    ('timeout', 'cancelled')
    """
    if has_fault(progress.findings):
        return "fault"
    if progress.failure is not None:
        return progress.failure
    return "cancelled" if ended == "cancelled" else "error" if ended == "error" else "ok"


def _cause(progress: Progress) -> FallbackReason | None:
    """Return the gravest reason to fall back."""
    if has_fault(progress.findings):
        return "fault"
    if progress.failure is not None:
        return progress.failure
    return "low margin" if progress.findings else None
