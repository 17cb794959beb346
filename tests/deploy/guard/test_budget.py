"""Purses: what they pay over any run of requests, and that hints never spend what faults need."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.guard import REASONS, Budget, PurseRules


@given(st.lists(st.sampled_from(["request", "take"]), max_size=300), st.floats(0.01, 1), st.integers(1, 8))
def test_over_any_run_fallbacks_are_a_share_and_a_burst(steps: list[str], share: float, burst: int) -> None:
    budget = Budget({"hints": PurseRules(share, burst)})
    requests, paid = [0], [0]
    for step in steps:
        if step == "request":
            budget.request()
        requests.append(requests[-1] + (step == "request"))
        paid.append(paid[-1] + (step == "take" and budget.take("low margin").is_paid))
    for start in range(0, len(paid), 7):
        for stop in range(start, len(paid), 11):
            assert paid[stop] - paid[start] <= burst + share * (requests[stop] - requests[start]) + 1e-6


def test_a_steady_wish_is_granted_at_the_share() -> None:
    budget = Budget({"hints": PurseRules(0.05, 10)})
    granted = 0
    for _ in range(10_000):
        budget.request()
        granted += budget.take("low margin").is_paid
    assert granted == pytest.approx(10 + 500, abs=1)


def test_ten_tenths_are_a_whole() -> None:
    budget = Budget({"hints": PurseRules(0.1, 1)})
    assert budget.take("low margin").is_paid
    for _ in range(10):
        budget.request()
    assert budget.left("hints") < 1
    assert budget.take("low margin").is_paid


def test_hints_never_spend_what_faults_need() -> None:
    budget = Budget()
    while budget.take("low margin").is_paid:
        pass
    assert budget.left("faults") == budget.rules["faults"].burst
    assert budget.take("fault").is_paid


def test_faults_may_spend_what_hints_have_left() -> None:
    budget = Budget({"faults": PurseRules(0.1, 2), "hints": PurseRules(0.1, 3), "outage": PurseRules(0.0, 0)})
    grants = [budget.take(reason) for _ in range(2) for reason in ("fault", "error", "timeout")]
    assert [grant.purse for grant in grants] == ["faults"] * 2 + ["hints"] * 3 + ["outage"]
    assert [grant.is_paid for grant in grants] == [True] * 5 + [False]
    assert [grant.left for grant in grants] == [1, 0, 2, 1, 0, 0]


@pytest.mark.parametrize("reason", ["fault", "error", "timeout"])
def test_each_grave_reason_may_spend_both_purses_and_a_hint_its_own(reason: Any) -> None:
    budget = Budget({"faults": PurseRules(0.1, 1), "hints": PurseRules(0.1, 1)})
    assert [budget.take(reason).purse for _ in range(2)] == ["faults", "hints"]
    assert not budget.take("low margin").is_paid


def test_the_whole_traffic_may_fall_back_while_the_breaker_is_open() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.request()
        assert budget.take("breaker open").is_paid


def test_what_happens_when_it_is_spent_is_stated_for_each_reason() -> None:
    nothing = PurseRules(0.0, 0)
    budget = Budget({"hints": nothing, "faults": nothing, "outage": nothing})
    for reason in REASONS:
        grant = budget.take(reason)
        assert not grant.is_paid
        assert grant.when_spent == ("answer as is" if reason == "low margin" else "refuse")


@pytest.mark.parametrize(("share", "burst"), [(-0.1, 5), (1.1, 5), (0.1, 0.5), (0.1, float("inf")), (float("nan"), 5)])
def test_purses_that_cannot_be_are_refused(share: float, burst: float) -> None:
    with pytest.raises(SchemeError, match="a purse needs a share of 0 to 1"):
        PurseRules(share, burst)


def test_an_unknown_purse_is_refused() -> None:
    rules: Any = {"tips": PurseRules(0.1, 1)}
    with pytest.raises(SchemeError, match="no purse 'tips'; there are hints, faults, outage"):
        Budget(rules)
