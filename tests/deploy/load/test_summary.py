"""What is reported of a step, and when the generator admits that it was too slow."""

from __future__ import annotations

import math

import pytest

from tersor.deploy.load.generator import Answer, StepRecord
from tersor.deploy.load.schedule import Step
from tersor.deploy.load.summary import StepResult, bottleneck, summarize


def recorded(latencies: list[float], lag: float = 0.0, waited: bool = False) -> StepRecord:
    record = StepRecord(Step(len(latencies), 1), within_s=0.1)
    for index, latency in enumerate(latencies):
        record.add(index, Answer(begun=index + lag, waited=waited, ended=index + latency, status=200))
    return record


def value(result: StepResult, name: str) -> float:
    metric = result.metric(name)
    assert metric is not None
    return metric.value


def test_rates_shares_and_percentiles_are_those_of_the_requests() -> None:
    record = recorded([0.01] * 90 + [0.2] * 10)
    record.add(0, Answer(begun=0, status=503, ended=0.001))
    record.add(0, Answer(begun=0, error="reset", ended=0.001))
    record.ended = 2.0
    result = summarize(record, connections=9)
    assert result.requests == 102
    assert (result.statuses, result.errors) == ({"200": 100, "503": 1}, {"reset": 1})
    assert value(result, "offered_per_s") == 102
    assert value(result, "achieved_per_s") == 50
    assert value(result, "goodput") == pytest.approx(90 / 102)
    assert value(result, "latency_p50_ms") == pytest.approx(10, rel=0.01)
    assert value(result, "latency_p99_ms") == pytest.approx(200, rel=0.01)
    assert value(result, "latency_max_ms") == pytest.approx(200)
    (note,) = result.notes
    assert note.startswith("100/s: 2 of 102 requests failed before their time was up and are not in the latency")


def test_intervals_hold_the_value_and_say_when_there_is_too_little() -> None:
    few, many = summarize(recorded([0.01] * 50), connections=9), summarize(recorded([0.01] * 900), connections=9)
    for name in ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "goodput"):
        metric = many.metric(name)
        assert metric is not None
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value <= metric.high < math.inf
    p99 = few.metric("latency_p99_ms")
    assert p99 is not None
    assert p99.high == math.inf


@pytest.mark.parametrize(
    ("p99", "goodput", "outcomes"),
    [(50, 0.9, ["pass", "pass"]), (5, 1.0, ["fail", "inconclusive"]), (None, 0.5, ["pass"]), (None, None, [])],
)
def test_limits_are_judged_by_their_intervals(p99: float | None, goodput: float | None, outcomes: list[str]) -> None:
    result = summarize(recorded([0.01] * 900), connections=9, max_p99_ms=p99, min_goodput=goodput)
    assert [limit.outcome for limit in result.limits] == outcomes


def test_nothing_but_failures_fails() -> None:
    record = StepRecord(Step(1, 1))
    record.add(0, Answer(begun=0, error="connect", ended=0.1))
    result = summarize(record, connections=9, max_p99_ms=10, min_goodput=0.5)
    assert result.limits[0].outcome == "fail"
    assert value(result, "goodput") == 0


def test_what_ran_out_of_time_is_infinitely_slow() -> None:
    record = recorded([0.01] * 500)
    for _ in range(50):
        record.add(0, Answer(begun=0, error="timeout", ended=10))
    result = summarize(record, connections=9, max_p99_ms=5000)
    assert value(result, "latency_p99_ms") == math.inf
    assert result.limits[0].outcome == "fail"
    assert "50 of 550 requests ran out of time" in result.notes[0]


def test_a_generator_that_was_late_passes_and_fails_nothing() -> None:
    result = summarize(recorded([0.03] * 900, lag=0.025), connections=9, max_p99_ms=10, min_goodput=0.1)
    assert result.invalid.startswith("1 % of the requests left more than 25")
    assert [limit.outcome for limit in result.limits] == ["inconclusive", "inconclusive"]
    assert all(limit.reason.startswith(result.invalid) for limit in result.limits)


def test_each_bottleneck_is_named() -> None:
    assert bottleneck(recorded([0.03] * 100, lag=0.001), 9) == ""
    assert bottleneck(recorded([2.0] * 100, lag=0.1), 9) == ""  # a twentieth of what is measured
    waiting = bottleneck(recorded([0.03] * 100, lag=0.025, waited=True), 9)
    assert waiting.startswith("100 of 100 requests waited for one of 9 connections")
    unsent = recorded([0.01] * 10)
    unsent.add(0, Answer(error="not sent"))
    assert bottleneck(unsent, 9).startswith("1 of 11 requests were never sent: 9 connections were all busy")
    busy = recorded([0.01] * 10)
    busy.processor = 0.95
    assert bottleneck(busy, 9).startswith("the generator took 95% of a core")


def test_without_a_request_nothing_is_known() -> None:
    result = summarize(StepRecord(Step(0.1, 1, "poisson")), connections=9, max_p99_ms=10, min_goodput=0.5)
    assert result.invalid.startswith("no request was due")
    assert [limit.outcome for limit in result.limits] == ["inconclusive", "inconclusive"]


def test_a_long_run_is_summarized_quickly() -> None:
    """By counts: a million latencies, of which intervals take 50,000 evenly picked ones."""
    record = recorded([0.01, 0.02, 0.03, 0.2])
    for _ in range(18):
        record.latency.merge(record.latency)
    record.requests = record.good = record.latency.count
    p50 = summarize(record, connections=9).metric("latency_p50_ms")
    assert p50 is not None
    assert p50.units == 4 << 18
    assert p50.low is not None
    assert p50.low <= p50.value
