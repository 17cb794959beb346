from __future__ import annotations

from dataclasses import replace

import pytest

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Benchmark, Metric
from tersor.pipeline.nets.mobile.budget import Budget

FOUND = Benchmark(
    subject="net",
    subject_sha256="",
    against="",
    engine="an engine",
    machine={},
    settings={},
    metrics=(Metric("file_bytes", 3e6, "bytes"), Metric("latency_p50_ms", 5.0, "ms", 4.0, 7.0, 20)),
)


@pytest.mark.parametrize(
    ("budget", "outcomes"),
    [
        (Budget(), []),
        (Budget(max_file_mb=3.0), ["pass"]),
        (Budget(max_file_mb=2.9, max_latency_ms=8), ["pass", "fail"]),
        (Budget(max_latency_ms=3.5), ["fail"]),
        (Budget(max_latency_ms=6), ["inconclusive"]),
    ],
)
def test_demands_are_judged_with_their_intervals(budget: Budget, outcomes: list[str]) -> None:
    assert [limit.outcome for limit in budget.limits(FOUND)] == outcomes


def test_a_phone_that_is_not_here_is_judged_by_its_estimate() -> None:
    budget = Budget(max_latency_ms=10, phone="snapdragon-8-gen-3")
    (limit,) = budget.limits(FOUND, "nobody tells its peak")
    assert (limit.outcome, limit.reason) == ("fail", "nobody tells its peak")
    known = replace(FOUND, metrics=(*FOUND.metrics, Metric("estimated_latency_ms", 5.0, "ms", 2.0, 20.0)))
    (limit,) = budget.limits(known)
    assert limit.outcome == "inconclusive", "its interval holds the bound"


def test_what_a_phone_does_not_hold_fails() -> None:
    outcomes = {}
    for size in (1e9, 7.1e9, 7.3e9):  # 8 GB, of which a tenth is the system's
        found = replace(FOUND, metrics=(*FOUND.metrics, Metric("resident_bytes", size, "bytes")))
        for phone in ("iphone-16-pro", "pixel-8"):
            (limit,) = Budget(phone=phone).limits(found)
            outcomes[size] = limit.outcome
            assert limit.metric == "resident_bytes"
        (own,) = Budget(max_memory_mb=2000, phone="pixel-8").limits(found)
        assert own.outcome == ("pass" if size < 2e9 else "fail")
    assert list(outcomes.values()) == ["pass", "pass", "fail"]


def test_what_was_not_measured_is_not_met() -> None:
    (limit,) = Budget(max_memory_mb=1000).limits(FOUND)
    assert limit.outcome == "fail"
    assert "resident_bytes is not known for an engine" in limit.reason


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_demand_is_a_positive_number(value: float) -> None:
    with pytest.raises(SchemeError, match="max_latency_ms is more than 0"):
        Budget(max_latency_ms=value)
