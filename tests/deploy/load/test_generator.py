"""The open loop on a clock that jumps: exact, and the same on any machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from tersor.deploy.load.generator import MOST_WAITING, Answer, Send, StepRecord, run_step
from tersor.deploy.load.schedule import Step, arrival_times

from .virtual import run


def queue(service: Callable[[float], float]) -> Send:
    """A server with one worker: `service` is the time it takes for what it begins at a time."""
    free_at = 0.0

    async def send(index: int, deadline: float) -> Answer:
        nonlocal free_at
        loop = asyncio.get_running_loop()
        answer = Answer(begun=loop.time())
        start = max(loop.time(), free_at)
        free_at = start + service(start)
        await asyncio.sleep(min(free_at, deadline) - loop.time())
        answer.ended = loop.time()
        if free_at > deadline:
            answer.error = "timeout"
        else:
            answer.status = 200
        return answer

    return send


def measured(step: Step, send: Send, timeout_s: float = 10.0, within_s: float | None = None) -> StepRecord:
    return run(run_step(step, send, timeout_s=timeout_s, within_s=within_s))


def test_a_constant_service_time_is_every_latency() -> None:
    record = measured(Step(50, 4), queue(lambda _: 0.01))
    assert (record.requests, record.good, record.in_time) == (200, 200, 200)
    assert record.latency.quantile(0) == pytest.approx(0.01, rel=0.01)
    assert record.latency.greatest == pytest.approx(0.01)
    assert record.lag.greatest == pytest.approx(0, abs=1e-6)


def test_requests_leave_on_time_whatever_became_of_those_before() -> None:
    left = []

    async def send(index: int, deadline: float) -> Answer:
        left.append(asyncio.get_running_loop().time())
        await asyncio.sleep(100 if index == 3 else 0)
        return Answer(begun=left[-1], ended=left[-1], status=200)

    step = Step(20, 5, "poisson", seed=2)
    measured(step, send)
    np.testing.assert_allclose(left, list(arrival_times(step)), atol=1e-6)


def test_a_stall_of_a_second_shows_in_every_request_that_was_due_in_it() -> None:
    """A hundred requests a second for ten: the hundred that fell into the stall wait for 1 s down to nothing."""

    def stalling(start: float) -> float:
        return 1.0 if 5 <= start < 5.005 else 0.0001

    record = measured(Step(100, 10), queue(stalling), within_s=0.1)
    assert record.latency.quantile(0.99) == pytest.approx(0.9, abs=0.03)
    assert record.latency.quantile(0.95) == pytest.approx(0.5, abs=0.05)
    assert record.in_time == pytest.approx(910, abs=5)

    # One user who waits for each answer sees the same server once in the stall, and 9000 quick answers besides.
    now, closed = 0.0, []
    while now < 10:
        closed.append(stalling(now))
        now += max(closed[-1], 0.001)
    assert np.quantile(closed, 0.99) < 0.001
    assert max(closed) == 1.0


def test_twice_the_capacity_makes_a_queue_that_grows_until_time_runs_out() -> None:
    record = measured(Step(200, 10), queue(lambda _: 0.01), timeout_s=2.0, within_s=0.1)
    assert record.errors["timeout"] > 1000
    assert record.good + record.errors["timeout"] == record.requests == 2000
    assert record.in_time < 50
    assert record.latency.quantile(0.99) == float("inf")


def test_what_waits_without_end_is_bounded() -> None:
    async def send(index: int, deadline: float) -> Answer:
        await asyncio.sleep(60)
        return Answer(error="timeout")

    record = measured(Step(10_000, 2.5), send)
    assert record.errors["timeout"] == MOST_WAITING
    assert record.errors["not sent"] == 25_000 - MOST_WAITING


def test_progress_is_told_a_few_times_a_second() -> None:
    told: list[tuple[str, int, int]] = []
    run(run_step(Step(100, 2), queue(lambda _: 0.0), timeout_s=1, progress=lambda *call: told.append(call)))
    assert 4 <= len(told) <= 8
    assert told[0][::2] == ("100/s", 200)


def test_all_times_count_from_the_intended_start() -> None:
    record = StepRecord(Step(1, 1))
    record.add(10.0, Answer(begun=10.5, ended=13.0, status=200, first=11.0, last=12.0, tokens=5))
    assert record.latency.greatest == pytest.approx(3.0)
    assert record.first_token.greatest == pytest.approx(1.0)
    assert record.token_gap.greatest == pytest.approx(0.25)
    assert record.lag.greatest == pytest.approx(0.5)
    assert record.tokens == 5
