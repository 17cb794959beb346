"""Send requests when the schedule says so, and record what became of each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import ExchangeError
from tersor.deploy.load.recorder import DurationRecorder
from tersor.deploy.load.schedule import Step, arrival_times
from tersor.deploy.load.work import Work

__all__ = ["Answer", "LoadProgress", "Send", "StepRecord", "run_step", "sender"]

MOST_WAITING = 20_000
"""Requests under way or waiting at once, beyond which none is added: they would take the memory of this machine."""
REPORT_S = 0.25


class LoadProgress(Protocol):
    """Called a few times a second."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """`done` of `total` requests of this step were sent."""


@dataclass(slots=True)
class Answer:
    """What became of one request; times on the clock of the loop.

    begun    when there was a connection for it; None: never
    waited   all connections were busy when its time came
    status   of HTTP, 0 where none came
    error    kind of failure, "" for none
    first, last, tokens   of the text of an answer, where it has any
    """

    begun: float | None = None
    waited: bool = False
    ended: float = 0.0
    status: int = 0
    error: str = ""
    first: float | None = None
    last: float | None = None
    tokens: int = 0

    @property
    def is_good(self) -> bool:
        """Whether it is what was asked for: whole, right, with a 2xx status."""
        return not self.error and 200 <= self.status < 300


Send = Callable[[int, float], Awaitable[Answer]]
"""Number of a request and its deadline on the clock of the loop → its answer; raises nothing."""


@dataclass(slots=True)
class StepRecord:
    """All that is kept of the requests of a step: counts and buckets, so that its memory does not grow.

    within_s     an answer counts for the goodput if it came in this time; None: in any time
    latency      from the intended start to the last byte of a good answer; infinite where the time ran out
    lag          from the intended start to when a connection was there
    first_token  from the intended start
    token_gap    mean time between tokens of an answer, after the first
    ended        when the last answer came, in seconds since the step began
    processor    seconds of processor that the generator took
    """

    step: Step
    within_s: float | None = None
    requests: int = 0
    good: int = 0
    in_time: int = 0
    waited: int = 0
    tokens: int = 0
    ended: float = 0.0
    processor: float = 0.0
    latency: DurationRecorder = field(default_factory=DurationRecorder)
    lag: DurationRecorder = field(default_factory=DurationRecorder)
    first_token: DurationRecorder = field(default_factory=DurationRecorder)
    token_gap: DurationRecorder = field(default_factory=DurationRecorder)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, intended: float, answer: Answer) -> None:
        """Count one request; `intended` on the clock of the loop."""
        self.requests += 1
        self.waited += answer.waited
        if answer.begun is not None:
            self.lag.add(max(0.0, answer.begun - intended))
        if answer.status:
            self.statuses[answer.status] += 1
        if answer.error:
            self.errors[answer.error] += 1
            if answer.error in ("timeout", "not sent"):
                self.latency.add(float("inf"))
        if not answer.is_good:
            return
        latency = max(0.0, answer.ended - intended)
        self.good += 1
        self.in_time += self.within_s is None or latency <= self.within_s
        self.latency.add(latency)
        self.tokens += answer.tokens
        if answer.first is not None and answer.last is not None:
            self.first_token.add(max(0.0, answer.first - intended))
            if answer.tokens > 1:
                self.token_gap.add((answer.last - answer.first) / (answer.tokens - 1))


def sender(client: Client, work: Work) -> Send:
    """Return what sends requests of `work` through `client`."""
    clock = asyncio.get_running_loop().time

    async def send(index: int, deadline: float) -> Answer:
        answer, reading = Answer(), work.reading(clock)

        def begin(has_waited: bool) -> None:
            answer.begun, answer.waited = clock(), has_waited

        try:
            answer.status = await client.send(work.wire(index), reading.take, deadline, begin)
            if answer.status // 100 == 2:
                reading.finish()
        except ExchangeError as error:
            answer.error = error.kind
        answer.ended = clock()
        answer.first, answer.last, answer.tokens = reading.first, reading.last, reading.tokens
        return answer

    return send


async def run_step(
    step: Step,
    send: Send,
    *,
    timeout_s: float,
    within_s: float | None = None,
    first: int = 0,
    progress: LoadProgress | None = None,
) -> StepRecord:
    """Send the requests of `step` when their time comes, wait for all answers, and return their record.

    timeout_s  of each request, from its intended start
    first      number of the first request
    """
    loop = asyncio.get_running_loop()
    record, total = StepRecord(step, within_s), max(1, round(step.rate * step.seconds))
    under_way = 0
    began, processor, told = loop.time(), time.thread_time(), 0.0

    async def one(index: int, intended: float) -> None:
        nonlocal under_way
        record.add(intended, await send(index, intended + timeout_s))
        record.ended = loop.time() - began
        under_way -= 1

    async with asyncio.TaskGroup() as group:
        for index, moment in enumerate(arrival_times(step)):
            intended = began + moment
            # Also where it is late: what has arrived meanwhile must be read before more is sent.
            await asyncio.sleep(max(0.0, intended - loop.time()))
            if under_way >= MOST_WAITING:
                record.add(intended, Answer(error="not sent"))
                continue
            under_way += 1
            group.create_task(one(first + index, intended))
            if progress is not None and moment - told >= REPORT_S:
                told = moment
                progress(f"{step.rate:g}/s", index, total)
    record.processor = time.thread_time() - processor
    return record
