"""Tests as JSON and back: to the last bit, and hostile documents."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError
from tersor.deploy.rollout.sequential import (
    Agreement,
    AnyTest,
    Count,
    ErrorRate,
    Latency,
    Quality,
    restored,
    split_level,
    stored,
)


def look(tests: dict[str, Any], rng: np.random.Generator) -> dict[str, AnyTest]:
    """One more look of every test."""
    return {
        "top-1": tests["top-1"].update(rng.random(50) < 0.98),
        "errors": tests["errors"].update(
            Count(int(rng.binomial(50, 0.02)), 50), Count(int(rng.binomial(90, 0.02)), 90)
        ),
        "latency": tests["latency"].update(rng.exponential(size=50), rng.exponential(size=90)),
        "quality": tests["quality"].update(rng.choice([-1.0, 0.0, 1.0], 50)),
    }


def begun() -> dict[str, AnyTest]:
    return {
        "top-1": Agreement.begin(),
        "errors": ErrorRate.begin(),
        "latency": Latency.begin(),
        "quality": Quality.begin(),
    }


def test_a_rollout_that_is_stored_at_every_look_is_the_same_to_the_last_bit() -> None:
    tests, kept = begun(), begun()
    for seed in range(12):
        tests = look(tests, np.random.default_rng(seed))
        kept = look(restored(json.loads(json.dumps(stored(kept), allow_nan=False))), np.random.default_rng(seed))
    assert kept == tests
    assert kept["latency"].harm.samples == 550
    assert kept["top-1"].harm.rounds > 0


@pytest.mark.parametrize("field", ["crossed_at", "peak", "samples"])
def test_a_field_that_is_lost_is_named(field: str) -> None:
    document = stored(begun())
    del document["errors"]["state"]["harm"][field]
    with pytest.raises(FormatError, match=rf"tests: 'errors': harm: missing keys \['{field}'\]"):
        restored(document)


def test_hostile_documents_are_refused() -> None:
    document = stored(begun())

    def broken(*path: Any, value: object) -> Any:
        changed = copy.deepcopy(document)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return changed

    for wrong, message in (
        ([], "tests: an object is needed, got list"),
        (broken("errors", value={"test": "agreement"}), "'errors': an object with the keys test and state"),
        (broken("errors", "test", value="t-test"), "no test is called 't-test'; agreement, error_rate"),
        (broken("errors", "test", value=[]), r"no test is called \[\]"),
        (broken("errors", "test", value="agreement"), "unknown keys"),
        (broken("errors", "state", "harm", "level", value="0.02"), "level must be float, got '0.02'"),
    ):
        with pytest.raises(FormatError, match=message):
            restored(wrong)
    for wrong, message in (
        (
            broken("errors", "state", "harm", "level", value=0.9),
            "level 0.9, stakes .*: the rules of the test say 0.0022",
        ),
        (broken("errors", "state", "harm", "level", value=2), "a level lies between 0 and 1"),
        (broken("errors", "state", "harm", "money", value=[0.0]), "3 stakes need as many logs of money"),
        (broken("errors", "state", "harm", "money", value=[0.0] * 10_000), "3 stakes need as many logs of money"),
        (broken("errors", "state", "harm", "rounds", value=-1), "samples, reopens and rounds are 0 or more"),
        (broken("errors", "state", "harm", "samples", value=2**100), "samples, reopens and rounds .* below 10"),
        (broken("errors", "state", "exact", "level", value=0.5), "the exact test has level 0.5, the rules 0.022"),
        (broken("errors", "state", "exact", "alive", value=[0.5, 0.2]), "the law of the hits and what is spent sum"),
        (broken("errors", "state", "exact", "alive", value=[]), "the law of the hits has 0 probabilities"),
        (broken("errors", "state", "candidate", "hits", value=3), "3 of 0 requests"),
        (broken("latency", "state", "candidate", value=[]), "2 quantiles need as many counts"),
        (broken("latency", "state", "thresholds", value=[1.0]), "2 quantiles need as many counts"),
        (broken("latency", "state", "thresholds", value=[1.0, "NaN"]), "thresholds are seconds"),
        (broken("top-1", "state", "agreed", value=1.0), "1 of 0 requests cannot agree"),
        (broken("quality", "state", "interval", "moments", "sum", value="NaN"), "sums are finite"),
    ):
        with pytest.raises(SchemeError, match=message):
            restored(wrong)


def test_a_level_is_split_once_over_all_tests() -> None:
    levels = split_level(0.05, {"agreement": 3, "errors": 4, "latency": 2, "quality": 1})
    assert levels["errors"] == pytest.approx(0.02)
    assert sum(levels.values()) == pytest.approx(0.05)
    with pytest.raises(SchemeError, match="every test needs a positive share"):
        split_level(0.05, {"agreement": 0})
    with pytest.raises(SchemeError, match=r"such as 0\.05, got 5"):
        split_level(5, {"agreement": 1})
