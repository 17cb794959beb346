"""The breaker: examples of each move, and random walks beside a slower model of what must hold."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tersor.core.errors import SchemeError
from tersor.deploy.guard import Breaker, BreakerRules, Permit
from tersor.deploy.guard.breaker import BAD, Outcome

RULES = BreakerRules(
    window_s=10, least=4, in_a_row=3, wait_s=2, longest_s=16, jitter=0, probes=2, successes=3, probe_s=20, openings=3
)


def send(breaker: Breaker, outcome: Outcome, now: float, count: int = 1) -> None:
    """Send requests, one after the other."""
    for _ in range(count):
        permit = breaker.ask(now)
        assert permit is not None
        breaker.record(permit, outcome, now)


def opened(rules: BreakerRules = RULES) -> Breaker:
    """A breaker that opened at 0 s."""
    breaker = Breaker(rules)
    send(breaker, "error", 0.0, rules.in_a_row)
    assert breaker.state(0.0) == "open"
    return breaker


@pytest.mark.parametrize("outcome", BAD)
def test_bad_outcomes_in_a_row_open_it(outcome: Outcome) -> None:
    breaker = Breaker(replace(RULES, least=10))
    send(breaker, outcome, 0.0, 2)
    send(breaker, "ok", 0.0)
    send(breaker, outcome, 0.0, 2)
    assert breaker.state(0.0) == "closed"
    send(breaker, outcome, 0.0)
    assert breaker.state(0.0) == "open"
    assert breaker.ask(1.9) is None
    assert breaker.transitions[-1].reason == "3 bad outcomes in a row"


def test_a_share_of_faults_opens_it_only_over_enough_replies() -> None:
    breaker = Breaker(replace(RULES, least=20, fault_share=0.1))
    send(breaker, "fault", 0.0, 2)
    send(breaker, "ok", 0.0, 17)
    assert breaker.state(0.0) == "closed"
    send(breaker, "ok", 0.0)
    assert breaker.state(0.0) == "open"
    move = breaker.transitions[-1]
    assert (move.faults.events, move.faults.total, move.reason) == (2, 20, "2 faults in 20 replies")


def test_errors_and_timeouts_count_together_and_leave_the_window() -> None:
    breaker = Breaker(replace(RULES, error_share=0.5, in_a_row=9))
    for outcome in ("error", "ok", "timeout"):
        send(breaker, outcome, 0.0)
    assert breaker.state(20.0) == "closed"
    send(breaker, "error", 20.0)
    assert breaker.state(20.0) == "closed"
    send(breaker, "ok", 20.0, 2)
    send(breaker, "timeout", 20.0)
    assert breaker.state(20.0) == "open"
    assert breaker.transitions[-1].reason == "2 errors in 4 replies"


def test_what_a_client_cancelled_counts_nowhere() -> None:
    breaker = Breaker(RULES)
    send(breaker, "cancelled", 0.0, 50)
    assert breaker.rates(0.0)[0].total == 0
    breaker = opened()
    for _ in range(10):
        send(breaker, "cancelled", 3.0)
    assert breaker.state(3.0) == "half-open"
    assert breaker.probes_in_flight == 0


def test_probes_are_bounded_and_close_it_together() -> None:
    breaker = opened()
    first, second = breaker.ask(2.0), breaker.ask(2.0)
    assert first is not None
    assert second is not None
    assert first.is_probe
    assert breaker.ask(2.0) is None
    breaker.record(first, "ok", 2.5)
    breaker.record(second, "ok", 2.5)
    third = breaker.ask(2.5)
    assert third is not None
    assert breaker.ask(2.5) is None  # one more success is all that is needed
    assert breaker.state(2.5) == "half-open"
    breaker.record(third, "ok", 3.0)
    assert breaker.state(3.0) == "closed"
    assert [move.target for move in breaker.transitions] == ["open", "half-open", "closed"]


def test_one_bad_probe_opens_it_again_for_twice_as_long_up_to_a_limit() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(5):
        waits.append(breaker.transitions[-1].wait_s)
        now += waits[-1]
        assert breaker.state(now - 0.01) == "open"
        send(breaker, "fault", now)
        assert breaker.transitions[-1].reason == "a probe ended in fault"
    assert waits == [2, 4, 8, 16, 16]


def test_a_calm_time_lets_the_next_wait_begin_anew_and_a_short_one_does_not() -> None:
    for calm, expected in ((99.0, 4), (101.0, 2)):
        breaker = opened(replace(RULES, calm_s=100))
        send(breaker, "ok", 2.0, 3)
        send(breaker, "error", 2.0 + calm, 3)
        assert breaker.transitions[-1].wait_s == expected


def test_waits_are_jittered_by_the_seed_alone() -> None:
    waits: dict[int, set[float]] = {}
    for seed in (1, 1, 2):
        breaker = Breaker(replace(RULES, jitter=0.5), seed=seed)
        send(breaker, "error", 0.0, 3)
        waits.setdefault(seed, set()).add(breaker.transitions[-1].wait_s)
    assert len(waits[1]) == 1
    assert waits[1] != waits[2]
    assert all(1 <= wait <= 3 for found in waits.values() for wait in found)


def test_a_late_result_from_before_an_opening_does_nothing() -> None:
    breaker = Breaker(RULES)
    early = [breaker.ask(0.0) for _ in range(9)]
    send(breaker, "error", 0.0, 3)
    for permit in early[:4]:
        assert permit is not None
        breaker.record(permit, "ok", 2.0)
    assert breaker.state(2.0) == "half-open"
    for permit in early[4:]:
        assert permit is not None
        breaker.record(permit, "error", 2.0)
    assert breaker.state(2.0) == "half-open"
    assert breaker.rates(2.0)[0].total == 0


def test_a_probe_counts_once() -> None:
    breaker = opened()
    permit = breaker.ask(2.0)
    assert permit is not None
    for _ in range(5):
        breaker.record(permit, "ok", 2.0)
    assert breaker.state(2.0) == "half-open"


def test_a_probe_that_never_comes_back_is_a_timeout() -> None:
    breaker = opened()
    lost = breaker.ask(2.0), breaker.ask(2.0)
    assert breaker.state(21.9) == "half-open"
    assert breaker.state(22.0) == "open"
    assert breaker.probes_in_flight == 0
    assert breaker.transitions[-1].reason == "a probe was not back after 20 s"
    assert breaker.transitions[-1].errors.events == 1
    assert lost[0] is not None
    breaker.record(lost[0], "ok", 26.0)
    assert breaker.state(26.0) == "half-open"


def test_old_probes_take_the_place_of_new_ones_until_they_are_back() -> None:
    breaker = opened()
    stuck, bad = breaker.ask(2.0), breaker.ask(2.0)
    assert bad is not None
    breaker.record(bad, "fault", 2.0)
    assert breaker.state(6.0) == "half-open"
    assert breaker.ask(6.0) is not None
    assert breaker.ask(6.0) is None
    assert stuck is not None
    breaker.record(stuck, "ok", 6.0)
    assert breaker.ask(6.0) is not None


def test_an_old_probe_takes_a_place_but_is_no_answer_to_wait_for() -> None:
    breaker = opened(replace(RULES, probes=3, successes=2))
    stuck, bad = breaker.ask(2.0), breaker.ask(2.0)
    assert stuck is not None
    assert bad is not None
    breaker.record(bad, "fault", 2.0)
    assert [breaker.ask(6.0) is None for _ in range(3)] == [False, False, True]


def test_an_old_probe_that_is_given_up_does_not_open_it_again() -> None:
    breaker = opened()
    stuck, bad = breaker.ask(2.0), breaker.ask(2.0)
    assert stuck is not None
    assert bad is not None
    breaker.record(bad, "fault", 2.0)
    assert breaker.state(21.0) == "half-open"
    assert breaker.probes_in_flight == 1
    assert breaker.state(22.0) == "half-open"
    assert breaker.probes_in_flight == 0


def test_who_has_nobody_else_is_let_through_and_moves_nothing() -> None:
    breaker = Breaker(BreakerRules(in_a_row=2, wait_s=1, jitter=0, probes=1, successes=2))
    send(breaker, "error", 0.0, 2)
    outcomes: tuple[Outcome, ...] = ("error", "ok", "ok", "ok")
    for outcome in outcomes:
        permit = breaker.ask(0.5, has_other=False)
        assert permit is not None
        breaker.record(permit, outcome, 0.5)
    assert (breaker.state(0.5), breaker.openings) == ("open", 1)
    probe, more = breaker.ask(2.0, has_other=False), breaker.ask(2.0, has_other=False)
    assert probe is not None
    assert more is not None
    assert (probe.is_probe, more.is_probe) == (True, False)
    breaker.record(more, "error", 2.0)
    assert breaker.state(2.0) == "half-open"


def test_openings_within_a_span_say_roll_back_until_reset() -> None:
    breaker = opened(replace(RULES, span_s=7))
    send(breaker, "error", 2.0)
    assert (breaker.verdict, breaker.openings) == ("keep", 2)
    send(breaker, "error", 6.0)
    assert breaker.verdict == "roll back"
    assert breaker.transitions[-1].verdict == "roll back"
    send(breaker, "ok", 14.0, 3)
    assert (breaker.state(14.0), breaker.verdict) == ("closed", "roll back")
    breaker.reset(15.0)
    assert (breaker.state(15.0), breaker.verdict) == ("closed", "keep")
    breaker = opened(replace(RULES, span_s=5))
    send(breaker, "error", 2.0)
    send(breaker, "error", 6.0)
    assert breaker.verdict == "keep"


def test_a_clock_that_jumps_back_keeps_it_open_no_longer_than_its_wait() -> None:
    breaker = opened()
    assert breaker.state(-1e6) == "open"
    assert breaker.state(-1e6 + 1.9) == "open"
    assert breaker.state(-1e6 + 2.0) == "half-open"


@pytest.mark.parametrize(
    "change",
    [
        *({"probes": 0}, {"fault_share": 0.0}, {"error_share": 1.5}, {"jitter": 1.0}, {"wait_s": 0.0}),
        *({"longest_s": 1.0}, {"window_s": math.inf}, {"probe_s": math.nan}, {"openings": 0}),
    ],
)
def test_rules_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SchemeError, match=r"must be|lie in"):
        replace(RULES, **change)


class Walk(RuleBasedStateMachine):
    """Random requests, outcomes and clocks."""

    @initialize(probes=st.integers(1, 3), successes=st.integers(1, 4), jitter=st.sampled_from([0.0, 0.3]))
    def begin(self, probes: int, successes: int, jitter: float) -> None:
        self.limits = replace(RULES, probes=probes, successes=successes, jitter=jitter)
        self.breaker = Breaker(self.limits, seed=5)
        self.now = self.elapsed = 0.0
        self.flying: list[tuple[Permit, float]] = []
        self.good: dict[int, int] = {}
        self.moves = 0

    @rule(step=st.floats(0, 30))
    def wait(self, step: float) -> None:
        self.now += step
        self.elapsed += step

    @rule(jump=st.floats(-1e6, 0))
    def jump_back(self, jump: float) -> None:
        self.breaker.state(self.now)  # the last that the clock showed before it jumped
        self.now += jump
        self.breaker.state(self.now)

    @rule()
    def ask(self) -> None:
        permit = self.breaker.ask(self.now)
        state = self.breaker.state(self.now)
        assert (permit is None) if state == "open" else (permit is None) <= (state == "half-open")
        if permit is not None:
            assert permit.is_probe == (state == "half-open")
            self.flying.append((permit, self.elapsed))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "ok", "ok", *BAD, "cancelled"]))
    def record(self, data: st.DataObject, outcome: Outcome) -> None:
        permit, begun = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        state, before = self.breaker.state(self.now), len(self.breaker.transitions)
        self.breaker.record(permit, outcome, self.now)
        if permit.is_probe and outcome == "ok" and self.elapsed - begun < self.limits.probe_s - 1e-6:
            self.good[permit.period] = self.good.get(permit.period, 0) + 1
        if permit.period != self.breaker._period and len(self.breaker.transitions) == before:
            assert self.breaker.state(self.now) == state

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "breaker"):
            return
        state = self.breaker.state(self.now)
        flying = [p for p, begun in self.flying if p.is_probe and self.elapsed - begun < self.limits.probe_s - 1e-6]
        assert len(flying) <= self.limits.probes
        moves = list(self.breaker.transitions)
        for before, after in pairwise(moves):
            assert before.target == after.source
        allowed = {("closed", "open"), ("open", "half-open"), ("half-open", "open"), ("half-open", "closed")}
        assert {(move.source, move.target) for move in moves} <= allowed
        assert (moves[-1].target if moves else "closed") == state
        assert self.breaker.openings == sum(move.target == "open" for move in moves)
        # The period of a half-open state is its place among the moves: each move begins the next one.
        for number, move in enumerate(moves):
            if move.target == "closed":
                assert self.good.get(number, 0) >= self.limits.successes
        assert self.moves <= len(moves)
        self.moves = len(moves)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_the_same_calls_give_the_same_log() -> None:
    logs = []
    for _ in range(2):
        breaker = Breaker(replace(RULES, jitter=0.4), seed=11)
        for step in range(400):
            permit = breaker.ask(step * 0.7)
            if permit is not None:
                breaker.record(permit, "error" if step % 5 < 3 else "ok", step * 0.7)
        logs.append(list(breaker.transitions))
    assert logs[0] == logs[1]
    assert len(logs[0]) > 10
