"""Decisions: every action with its reason, what can never be promoted, and records that are decided again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.core.errors import FormatError, SchemeError
from tersor.deploy.rollout.decision import StepProgress, StepRules, decide, replayed
from tersor.deploy.rollout.sequential import Agreement, AnyTest, ErrorRate

RULES = StepRules(least_samples=100, least_s=60, most_s=3600)
SAFE = Agreement.begin().update(np.ones(200))
HARMFUL = Agreement.begin().update(np.zeros(20))
OPEN = Agreement.begin().update(np.ones(20))


@pytest.mark.parametrize(
    ("tests", "progress", "alarms", "action", "reason"),
    [
        ({"top-1": SAFE}, (100, 60), (), "PROMOTE_STEP", "top-1 safe after 100 samples"),
        ({"top-1": SAFE}, (100, 9999), (), "PROMOTE_STEP", "top-1 safe"),
        ({"top-1": SAFE}, (99, 60), (), "WAIT", "missing: 99 of 100 samples"),
        ({"top-1": SAFE}, (100, 59), (), "WAIT", "missing: 59 of 60 s"),
        ({"top-1": OPEN}, (100, 60), (), "WAIT", "missing: top-1 14% of the way to safe"),
        ({"top-1": OPEN}, (100, 3600), (), "PAUSE", "3600 s are over; missing: top-1 14% of the way to safe"),
        ({"top-1": SAFE}, (0, 3600), (), "PAUSE", "3600 s are over; missing: 0 of 100 samples"),
        ({"top-1": HARMFUL}, (20, 1), (), "ROLL_BACK", "top-1 is harmful: agreement 0 after 20 samples"),
        ({"top-1": SAFE}, (100, 60), ("NaN in a reply",), "ROLL_BACK", "NaN in a reply"),
        ({"a": SAFE, "b": HARMFUL}, (100, 60), (), "ROLL_BACK", "b is harmful"),
    ],
)
def test_every_action_comes_with_its_reason(
    tests: dict[str, AnyTest], progress: tuple[int, float], alarms: tuple[str, ...], action: str, reason: str
) -> None:
    decision = decide(tests, RULES, StepProgress(*progress), alarms)
    assert decision.action == action
    assert decision.reason.startswith(reason)


def test_a_test_that_the_step_does_not_require_can_still_roll_back() -> None:
    rules = StepRules(least_samples=1, least_s=0, required=("a",))
    assert decide({"a": SAFE, "b": OPEN}, rules, StepProgress(1, 0)).action == "PROMOTE_STEP"
    assert decide({"a": SAFE, "b": HARMFUL}, rules, StepProgress(1, 0)).action == "ROLL_BACK"
    assert decide({"a": OPEN, "b": SAFE}, rules, StepProgress(1, 0)).action == "WAIT"


@settings(max_examples=100, deadline=None)
@given(
    tests=st.dictionaries(
        st.sampled_from("abc"), st.sampled_from([SAFE, HARMFUL, OPEN, Agreement.begin()]), min_size=1
    ),
    samples=st.integers(0, 200),
    elapsed_s=st.floats(0, 5000),
    alarms=st.lists(st.just("a sentinel spoke"), max_size=1),
)
def test_nothing_is_promoted_for_want_of_data_and_everything_can_be_decided_again(
    tests: dict[str, AnyTest], samples: int, elapsed_s: float, alarms: list[str]
) -> None:
    decision = decide(tests, RULES, StepProgress(samples, elapsed_s), alarms)
    may = samples >= 100 and elapsed_s >= 60 and not alarms and all(test == SAFE for test in tests.values())
    assert (decision.action == "PROMOTE_STEP") == may
    assert (decision.action == "ROLL_BACK") == bool(alarms or HARMFUL in tests.values())
    assert (decision.action == "PAUSE") == (elapsed_s >= 3600 and not may and decision.action != "ROLL_BACK")
    assert replayed(json.loads(json.dumps(decision.to_dict(), allow_nan=False))) == decision


def changed(**entries: Any) -> dict[str, Any]:
    record = json.loads(json.dumps(decide({"top-1": SAFE}, RULES, StepProgress(100, 60)).to_dict()))
    return {**record, **entries}


def test_a_record_that_was_altered_does_not_come_out_the_same() -> None:
    with pytest.raises(FormatError, match="decided again, action differ: it was 'ROLL_BACK', now PROMOTE_STEP"):
        replayed(changed(action="ROLL_BACK"))
    with pytest.raises(FormatError, match="decided again, action, reason differ"):
        replayed(changed(progress={"samples": 3, "elapsed_s": 60.0}))
    with pytest.raises(FormatError, match="a decision has the keys"):
        replayed({"action": "WAIT"})
    with pytest.raises(FormatError, match="alarms must be a list of texts"):
        replayed(changed(alarms=[1]))


def test_rules_that_could_promote_blindly_are_refused() -> None:
    with pytest.raises(SchemeError, match="the step requires a test, there are none: nothing could be shown"):
        decide({}, RULES, StepProgress(0, 0))
    with pytest.raises(SchemeError, match=r"requires \['latency'\], there are \['errors'\]"):
        decide({"errors": ErrorRate.begin()}, StepRules(required=("latency",)), StepProgress(0, 0))
    with pytest.raises(SchemeError, match="a step needs one sample or more"):
        StepRules(least_samples=0)
    with pytest.raises(SchemeError, match="0 ≤ least_s < most_s"):
        StepRules(least_s=10, most_s=10)
    with pytest.raises(SchemeError, match="samples and seconds are 0 or more"):
        StepProgress(-1, 0)
