"""The policy, rung by rung."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from tersor.core.errors import SchemeError
from tersor.core.records import plain, read_record
from tersor.deploy.guard import Breaker, BreakerRules, Budget, Case, Ladder, LadderRules, Limits, Progress, PurseRules
from tersor.deploy.guard.findings import Finding, found
from tersor.deploy.guard.ladder import Decision, outcome_of

FAULT, HINT = found("repetition", 40, 48, 32), found("low_margin", 15, 0.01, 0.08)
EMPTY = PurseRules(0.0, 0)
SPENT: Any = {"hints": EMPTY, "faults": EMPTY, "outage": EMPTY}


def admitted(ladder: Ladder, *, is_streaming: bool = False) -> Case:
    """A request that the quantized variant takes."""
    case = ladder.admit(0.0, is_streaming=is_streaming)
    assert (case.decision.action, case.decision.reason) == ("quantized", "sound")
    return case


def judged(progress: Progress, *, is_streaming: bool = False, budget: Budget | None = None) -> tuple[str, str]:
    """What a fresh ladder does about an attempt, and why."""
    ladder = Ladder(budget=budget)
    decision = ladder.judge(admitted(ladder, is_streaming=is_streaming), progress, 1.0)
    return decision.action, decision.reason


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(), ("wait", "held back")),
        (Progress(500), ("wait", "held back")),
        (Progress(500, findings=(HINT,)), ("wait", "held back")),
        (Progress(500, is_finished=True), ("quantized", "sound")),
        (Progress(500, is_finished=True, findings=(HINT,)), ("full precision", "low margin")),
        (Progress(3, findings=(FAULT,)), ("full precision", "fault")),
        (Progress(3, findings=(HINT, FAULT)), ("full precision", "fault")),
        (Progress(3, failure="error"), ("full precision", "error")),
        (Progress(0, failure="timeout"), ("full precision", "timeout")),
        (Progress(3, failure="error", findings=(FAULT,)), ("full precision", "fault")),
    ],
)
def test_a_whole_reply_is_judged_at_its_end_and_a_fault_at_once(progress: Progress, expected: tuple[str, str]) -> None:
    assert judged(progress) == expected


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(15), ("wait", "held back")),
        (Progress(16), ("quantized", "sound")),
        (Progress(2, is_finished=True), ("quantized", "sound")),
        (Progress(15, findings=(HINT,)), ("wait", "held back")),
        (Progress(16, findings=(HINT,)), ("full precision", "low margin")),
        (Progress(4, findings=(FAULT,)), ("full precision", "fault")),
        (Progress(17, 16), ("quantized", "sound")),
        (Progress(17, 16, findings=(HINT,)), ("quantized", "hint ignored")),
        (Progress(17, 16, findings=(FAULT,)), ("end", "fault")),
        (Progress(17, 1, failure="error"), ("end", "error")),
        (Progress(17, 1, failure="timeout", findings=(HINT,)), ("end", "timeout")),
    ],
)
def test_a_stream_is_judged_before_its_first_token_and_never_spliced(
    progress: Progress, expected: tuple[str, str]
) -> None:
    assert judged(progress, is_streaming=True) == expected


def test_once_a_token_has_left_nothing_but_the_variant_itself_answers() -> None:
    findings: list[tuple[Finding, ...]] = [(), (HINT,), (FAULT,), (HINT, FAULT)]
    failures: list[Any] = [None, "error", "timeout"]
    for found_, failure, done, streaming in itertools.product(findings, failures, (False, True), (False, True)):
        progress = Progress(20, 1, done, found_, failure)
        assert judged(progress, is_streaming=streaming)[0] in ("quantized", "end")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"full_s": None}, "no full precision"), ({"full_s": 5.0, "remaining_s": 4.9}, "no time"), ({}, "budget spent")],
)
def test_without_full_precision_a_hint_is_answered_as_it_is_and_all_else_is_refused(change: Any, reason: str) -> None:
    for findings, failure, action in (
        ((HINT,), None, "quantized"),
        ((FAULT,), None, "refuse"),
        ((), "error", "refuse"),
        ((), "timeout", "refuse"),
    ):
        progress = replace(Progress(20, is_finished=True, findings=findings, failure=failure), **change)  # type: ignore[arg-type]  # a loop over Literals
        assert judged(progress, budget=Budget(SPENT)) == (action, reason)


def test_what_cannot_be_used_is_not_paid() -> None:
    ladder = Ladder()
    before = ladder.budget.left("faults")
    for change in ({"full_s": None}, {"full_s": 5.0, "remaining_s": 1.0}):
        decision = ladder.judge(admitted(ladder), replace(Progress(1, findings=(FAULT,)), **change), 0.0)
        assert decision.grant is None
    assert ladder.budget.left("faults") == before
    decision = ladder.judge(admitted(ladder), Progress(1, findings=(FAULT,), full_s=1.0, remaining_s=1.0), 0.0)
    assert decision.grant is not None
    assert (decision.action, decision.grant.purse) == ("full precision", "faults")


def test_an_open_breaker_sends_requests_to_full_precision_or_refuses_them() -> None:
    ladder = Ladder(Breaker(BreakerRules(in_a_row=2)))
    for _ in range(2):
        case = admitted(ladder)
        progress = Progress(1, failure="error")
        ladder.finish(case, progress, ladder.judge(case, progress, 0.0), "error", 0.0)
    case = ladder.admit(1.0, is_streaming=True)
    assert (case.permit, case.decision.action, case.decision.reason) == (None, "full precision", "breaker open")
    assert case.decision.state == "open"
    case = ladder.admit(1.0, is_streaming=False, remaining_s=1.0, full_s=2.0)
    assert (case.decision.action, case.decision.reason) == ("refuse", "no time")
    with pytest.raises(SchemeError, match="nothing to judge"):
        ladder.judge(case, Progress(), 1.0)
    with pytest.raises(SchemeError, match="nothing to finish"):
        ladder.finish(case, Progress(), case.decision, "stop", 1.0)
    rates = ladder.rates(1.0)
    assert (rates.fallbacks.events, rates.refusals.events, rates.fallbacks.total) == (3, 1, 4)
    assert (rates.errors.events, rates.errors.total, rates.faults.events) == (2, 2, 0)


def test_without_full_precision_nobody_is_sent_away_for_what_others_were_answered() -> None:
    ladder = Ladder(Breaker(BreakerRules(in_a_row=2)))
    bad, sound = Progress(1, findings=(FAULT,), full_s=None), Progress(1, is_finished=True, full_s=None)
    told = []
    for progress in (bad, bad, sound, bad, sound, sound):
        case = ladder.admit(1.0, is_streaming=False, full_s=None)
        decision = ladder.judge(case, progress, 1.0)
        ladder.finish(case, progress, decision, "stop", 1.0)
        told.append(decision.action)
    assert told == ["refuse", "refuse", "quantized", "refuse", "quantized", "quantized"]
    assert (ladder.breaker.state(1.0), ladder.breaker.openings) == ("open", 1)
    assert (ladder.rates(1.0).faults.events, ladder.rates(1.0).faults.total) == (3, 6)


def test_a_variant_that_garbles_every_reply_is_taken_out_and_brought_back_when_sound() -> None:
    ladder = Ladder(Breaker(BreakerRules(jitter=0, wait_s=5, successes=2)))
    answered = []
    for second in range(12):
        case = ladder.admit(float(second), is_streaming=True)
        if case.permit is None:
            answered.append(case.decision.reason)
            continue
        progress = Progress(9, findings=(FAULT,) if second < 8 else (), is_finished=True)
        decision = ladder.judge(case, progress, float(second))
        ladder.finish(case, progress, decision, "stop", float(second))
        answered.append(decision.reason)
    assert answered == ["fault"] * 5 + ["breaker open"] * 4 + ["sound"] * 3
    assert ladder.breaker.state(12.0) == "closed"


@pytest.mark.parametrize(("bad", "of"), [(1, 20), (1, 3), (2, 5), (4, 9), (4, 5)])
@pytest.mark.parametrize("rate", [5, 2000])
def test_a_variant_that_fails_now_and_then_costs_no_client_an_answer(bad: int, of: int, rate: int) -> None:
    """In flight eight at a time; full precision is well all the while."""
    ladder, refused = Ladder(), 0
    flying: deque[Case] = deque()
    for number in range(5000):
        now = number / rate
        case = ladder.admit(now, is_streaming=False)
        refused += case.decision.action == "refuse"
        if case.permit is not None:
            flying.append(case)
        if len(flying) < 8:
            continue
        case = flying.popleft()
        progress = Progress(1, failure="error") if number % of < bad else Progress(1, is_finished=True)
        decision = ladder.judge(case, progress, now)
        refused += decision.action == "refuse"
        ladder.finish(case, progress, decision, "error" if progress.failure else "stop", now)
    assert refused == 0


def test_streams_that_had_to_be_ended_are_counted() -> None:
    ladder = Ladder()
    case, progress = admitted(ladder, is_streaming=True), Progress(30, 20, findings=(FAULT,))
    settled = ladder.finish(case, progress, ladder.judge(case, progress, 0.0), "error", 0.0)
    assert settled.outcome == "fault"
    rates = ladder.rates(0.0)
    assert (rates.ended.events, rates.faults.events, rates.fallbacks.events, rates.caps.total) == (1, 1, 0, 0)


def test_too_many_replies_at_the_length_cap_are_faults_of_the_variant() -> None:
    ladder = Ladder(limits=Limits(cap_replies=12))
    outcomes = []
    for _ in range(8):
        case, progress = admitted(ladder), Progress(64, is_finished=True)
        settled = ladder.finish(case, progress, ladder.judge(case, progress, 0.0), "length", 0.0)
        outcomes.append((settled.outcome, settled.finding is not None))
        if settled.outcome == "fault":
            break
    assert outcomes == [("ok", False)] * 2 + [("fault", True)]
    assert (ladder.rates(0.0).caps.share, ladder.breaker.rates(0.0)[0].events) == (1.0, 1)


@pytest.mark.parametrize(
    ("progress", "ended", "expected"),
    [
        (Progress(), "stop", "ok"),
        (Progress(findings=(HINT,)), "length", "ok"),
        (Progress(), "cancelled", "cancelled"),
        (Progress(findings=(FAULT,)), "cancelled", "fault"),
        (Progress(failure="timeout"), "cancelled", "timeout"),
        (Progress(), "error", "error"),
    ],
)
def test_an_attempt_counts_as_the_gravest_thing_that_happened(progress: Progress, ended: Any, expected: str) -> None:
    assert outcome_of(progress, ended) == expected


def test_a_decision_carries_its_numbers_through_json() -> None:
    ladder = Ladder()
    progress = Progress(16, findings=(HINT, FAULT), remaining_s=math.inf, full_s=2.0)
    decision = ladder.judge(admitted(ladder, is_streaming=True), progress, 7.0)
    document = plain(decision)
    assert document["progress"]["findings"][1] == {
        "sentinel": "repetition",
        "place": 40,
        "value": 48.0,
        "limit": 32.0,
        "severity": "fault",
    }
    assert (document["grant"]["left"], document["faults"], document["state"]) == (
        49.0,
        {"events": 0, "total": 0},
        "closed",
    )
    assert read_record(Finding, document["progress"]["findings"][0], "finding") == HINT


def test_judging_twice_changes_nothing_but_the_budget() -> None:
    ladder = Ladder()
    case = admitted(ladder, is_streaming=True)
    for progress in (Progress(3), Progress(16), Progress(20, 16, findings=(FAULT,))):
        assert ladder.judge(case, progress, 2.0) == ladder.judge(case, progress, 2.0)
    assert ladder.rates(2.0).fallbacks.total == 0


def test_without_a_hold_back_a_stream_goes_out_at_once() -> None:
    ladder = Ladder(rules=LadderRules(hold_back=0))
    decision = ladder.judge(admitted(ladder, is_streaming=True), Progress(), 0.0)
    assert isinstance(decision, Decision)
    assert (decision.action, decision.hold_back) == ("quantized", 0)


def test_what_cannot_be_is_refused() -> None:
    for rules in ({"hold_back": -1}, {"window_s": 0.0}, {"window_s": math.inf}):
        with pytest.raises(SchemeError, match="hold_back must be 0 or more"):
            LadderRules(**rules)
    ladder = Ladder()
    with pytest.raises(SchemeError, match="5 tokens sent of 3 made"):
        ladder.judge(admitted(ladder), Progress(3, 5), 0.0)
