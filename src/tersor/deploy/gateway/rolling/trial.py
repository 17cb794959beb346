"""A candidate while it is tried: which requests it answers, and what is counted of them and of its control's.

It answers as any variant does, watched by sentinels and a breaker of its own, and with the control behind it: where it
fails, is late or says garbage, the client gets the control's answer, and the failure is counted against the candidate.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tersor.core.errors import EngineError
from tersor.deploy.gateway.comparing.comparison import Compared, Exchange, Rest
from tersor.deploy.gateway.comparing.shadow import Shadow
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Reply, Served, TooLateError
from tersor.deploy.gateway.rolling.cohorts import Caller, draw
from tersor.deploy.gateway.rolling.priority import can_return, put_last
from tersor.deploy.gateway.rolling.progress import Progress, weight_of
from tersor.deploy.guard.budget import Budget, PurseRules
from tersor.deploy.guard.ladder import Ladder
from tersor.deploy.rollout.decision import Decision
from tersor.deploy.rollout.sequential import Agreement, AnyTest, Count, ErrorRate, Latency, restored
from tersor.deploy.running.supervised import RequestError

__all__ = ["Tally", "Trial"]

LEAST_CONTROL = 20
"""Requests of the control in a look: fewer give no quantile of latency."""
MOST_LATENCIES = 20_000
EXCUSED = ("", "low margin")
"""Reasons of a fallback that are no failure."""
REFUSED = "refused"
"""Reason of a fallback: the candidate says that the request is wrong, and the control answers it."""
OPEN_HANDED = {"faults": PurseRules(1.0, 1e9), "outage": PurseRules(1.0, 1e9)}
"""The control answers whatever the candidate cannot: it did before."""
MOST_LAST_S = 2.0
"""That a comparison lasts before its engine is no longer put last: a machine may have no moment left for it."""
_chance = random.SystemRandom()


@dataclass
class Tally:
    """Requests of one variant: since the last look, and in all."""

    errors: int = 0
    requests: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_LATENCIES))
    all_errors: int = 0
    all_requests: int = 0

    def add(self, seconds: float | None) -> None:
        """Count a request that was answered after so many seconds; None: it failed."""
        self.requests, self.all_requests = self.requests + 1, self.all_requests + 1
        if seconds is None:
            self.errors, self.all_errors = self.errors + 1, self.all_errors + 1
        else:
            self.latencies.append(seconds)

    def taken(self) -> tuple[Count, list[float]]:
        """Return what was counted since the last look, which ends here."""
        found = Count(self.errors, self.requests), list(self.latencies)
        self.errors = self.requests = 0
        self.latencies.clear()
        return found


@dataclass(eq=False)
class Trial:
    """The candidate of one model, loaded.

    control  the model as it serves; a request goes to it wherever the candidate is not meant
    now      how far the rollout is; set by whoever has written it down
    """

    control: Served
    now: Progress
    metrics: Metrics
    served: Served = field(init=False)
    shadow: Shadow = field(init=False)
    tests: dict[str, AnyTest] = field(init=False)
    tallies: Mapping[str, Tally] = field(init=False)
    last: Decision | None = field(default=None, init=False)
    is_loaded: bool = field(default=False, init=False)
    _placed: tuple[int, bool] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        plan, name = self.control.plan, self.candidate
        mine = replace(plan, primary=name, fallback=plan.primary, candidate=None)
        self.served = Served(self.control.name, mine, self.metrics, self.control.patience)
        self.served.variants[plan.primary] = self.control.variants[plan.primary]
        self.served.admission = self.control.admission
        self.served.ladder = Ladder(budget=Budget(OPEN_HANDED))  # type: ignore[arg-type]  # names of purses
        reference = self.control.variants[self.reference]
        self.shadow = Shadow(
            self.control.name, reference, self.served.variants[name], self.control.admission, self.metrics, self._told,
            plan.rollout.shadow_time / 100,
        )  # fmt: skip
        self.tests = restored(self.now.tests) if self.now.tests else plan.rollout.begin()
        self.tallies = {name: Tally(), plan.primary: Tally()}

    @property
    def candidate(self) -> str:
        """The variant that is tried."""
        return self.now.candidate

    @property
    def reference(self) -> str:
        """The variant that its answers are compared with."""
        return self.control.plan.fallback or self.control.plan.primary

    @property
    def weight(self) -> float:
        """Share of requests that the candidate answers now."""
        return weight_of(self.now) if self.is_loaded else 0.0

    async def load(self) -> None:
        """Load the candidate; EngineError where that cannot be."""
        await self.served.start()
        self.served.variants[self.candidate].introduce()
        self.shadow.start()
        self.is_loaded = True

    async def close(self) -> None:
        """End the candidate, and only that."""
        self.is_loaded = False
        await self.shadow.close()
        variant = self.served.variants[self.candidate]
        variant.forget()
        await variant.close()

    # Requests

    def is_meant(self, caller: Caller) -> bool:
        """Whether the candidate answers a caller."""
        if caller.choice:
            return caller.choice == self.candidate
        weight = self.weight
        return weight >= 1 or (weight > 0 and draw(self.now.id, caller.name) < weight)

    def answered(self, request: dict[str, Any], payload: bytes, caller: Caller) -> AbstractAsyncContextManager[Reply]:
        """Return what holds a reply that has begun, of the variant that is meant; raises as `Served.answered` does."""
        is_candidate, is_counted = self.is_meant(caller), self.now.trying == "canary" and not caller.choice
        is_sampled = self.is_loaded and self.now.state != "promoted" and self._is_sampled()
        if not (is_candidate or is_counted or is_sampled):  # most of them, in the shadow: nothing is noted
            return self.control.answered(request, payload)
        served = self.served if is_candidate else self.control
        return self._noted(served, request, payload, is_counted=is_counted, is_sampled=is_sampled)

    @asynccontextmanager
    async def _noted(
        self, served: Served, request: dict[str, Any], payload: bytes, *, is_counted: bool, is_sampled: bool
    ) -> AsyncIterator[Reply]:
        """Yield a reply, and count what becomes of it."""
        role, step = served.plan.primary, self.now.step
        began, seconds, has_failed = time.monotonic(), 0.0, True
        exchange = Exchange(request, payload)
        try:
            async with self._begun(served, request, payload) as reply:
                seconds, has_failed = time.monotonic() - began, reply.reason not in EXCUSED
                rest = Rest(reply.held, reply.rest, exchange)
                reply.rest = rest.parts()  # the very reply: who passes it on tells it what became of it
                yield reply
                has_failed = has_failed or rest.has_failed
        except (EngineError, TooLateError):
            has_failed = True
            if is_counted:
                self._count(role, step, None)
            raise
        if is_counted:
            self._count(role, step, None if has_failed else seconds)
        if is_sampled and not has_failed and self.is_loaded:
            self.shadow.offer(exchange)

    @asynccontextmanager
    async def _begun(self, served: Served, request: dict[str, Any], payload: bytes) -> AsyncIterator[Reply]:
        """Yield the reply of the one that is meant, or of the control where the candidate refuses what that one takes.

        A candidate may have less room for a prompt, or fail on some inputs: whether the request is to blame is for the
        variant to say that would have answered without the rollout.
        """
        async with AsyncExitStack() as stack:
            try:
                reply = await stack.enter_async_context(served.answered(request, payload))
            except RequestError:
                if served is self.control:
                    raise
                reply = await stack.enter_async_context(self.control.answered(request, payload))
                self.metrics.fallbacks.labels(self.control.name, REFUSED).inc()
                shown = replace(reply, reason=reply.reason or REFUSED)
                yield shown
                reply.tokens, reply.is_cut = shown.tokens, shown.is_cut
                return
            yield reply

    def _is_sampled(self) -> bool:
        return self.now.trying in ("shadow", "canary") and _chance.random() * 100 < self.control.plan.rollout.shadow

    def _count(self, role: str, step: int | None, seconds: float | None) -> None:
        outcome = "error" if seconds is None else "ok"
        self.metrics.assigned.labels(self.control.name, role, outcome).inc()
        self.tallies[role].add(seconds)
        if role == self.candidate and self.now.trying == "canary" and step == self.now.step:
            self.now = replace(self.now, samples=self.now.samples + 1)

    def _told(self, found: Compared) -> None:
        """Take a comparison into the test."""
        test = self.tests["agreement"]
        if isinstance(test, Agreement):
            self.tests["agreement"] = test.update([found.agreement])
        if self.now.trying == "shadow":
            self.now = replace(self.now, samples=self.now.samples + 1)

    # Looks

    def settle(self) -> None:
        """Have the candidate compute where nobody else does as long as nobody waits for its answers."""
        pid = self.served.variants[self.candidate].engine.pid
        is_last = self.now.trying == "shadow" and self.shadow.lasts_s < MOST_LAST_S
        if pid is not None and self._placed != (pid, is_last) and can_return():
            put_last(pid, is_last=is_last)
            self._placed = pid, is_last

    def look(self) -> bool:
        """Compare both variants, where both have answered enough since the last look; return whether they had."""
        plan = self.control.plan
        ours, theirs = self.tallies[self.candidate], self.tallies[plan.primary]
        least = plan.rollout.look
        if ours.requests < least or theirs.requests < max(least, LEAST_CONTROL):
            return False
        (count, mine), (others, its) = ours.taken(), theirs.taken()
        errors, latency = self.tests["error_rate"], self.tests["latency"]
        if isinstance(errors, ErrorRate):
            self.tests["error_rate"] = errors.update(count, others)
        if isinstance(latency, Latency):
            self.tests["latency"] = latency.update(mine, its)
        return True

    @property
    def alarms(self) -> list[str]:
        """What demands a rollback at once."""
        ladder, now = self.served.ladder, time.monotonic()
        if self.now.trying != "canary" or ladder.breaker.state(now) == "closed":
            return []
        last = ladder.breaker.transitions[-1] if ladder.breaker.transitions else None
        return [f"the breaker of {self.candidate} opened: {last.reason if last else 'too many failures'}"]
