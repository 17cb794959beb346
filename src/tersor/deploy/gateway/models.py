"""A served model: its variants in their processes, and which of them answers a request.

The primary answers, watched by the sentinels. Where its engine is gone, fails, is late, or what it says is garbage, the
fallback does; the ladder of `deploy.guard` decides. Once something was sent nobody else goes on with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tersor.core.errors import EngineError
from tersor.deploy.config import ModelPlan
from tersor.deploy.gateway.admission import Admission
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.variants import Variant
from tersor.deploy.gateway.watching import TensorWatch, TextWatch, Watch, shown
from tersor.deploy.guard.ladder import Case, Decision, Failure, Ladder, Progress
from tersor.deploy.running.supervised import Answer, Patience

__all__ = ["Reply", "Served", "TooLateError"]

PRIMARY_SHARE = 0.5
"""Of the time until the deadline that the primary gets where there is a fallback."""
HINT_SHARE = 0.1
"""Of the time until the deadline that the fallback gets where the primary's answer is sound, only less sure."""


class TooLateError(Exception):
    """No variant began to answer before the deadline."""


@dataclass(eq=False)
class Reply:
    """An answer that has begun.

    variant  who gives it
    held     its first parts, which were judged before any was sent
    rest     the parts behind them; EngineError where they turn out wrong
    reason   why the fallback gives it; empty: it does not
    tokens   that it had, told by who passes it on
    is_cut   it broke off after something was sent
    """

    variant: str
    held: list[Answer]
    rest: AsyncIterator[Answer]
    reason: str = ""
    tokens: int = 0
    is_cut: bool = False

    async def parts(self) -> AsyncIterator[Answer]:
        """Yield all parts."""
        for part in self.held:
            yield part
        async for part in self.rest:
            yield part


@dataclass(eq=False)
class Served:
    """One model of a deployment.

    variants        those that are loaded, or will be by `start`: the one that answers, and the one behind it
    is_rolled_back  the fallback answers everything: somebody has said so
    """

    name: str
    plan: ModelPlan
    metrics: Metrics
    patience: Patience = field(default_factory=Patience)
    variants: dict[str, Variant] = field(default_factory=dict, init=False)
    admission: Admission = field(init=False)
    ladder: Ladder = field(default_factory=Ladder, init=False)
    is_rolled_back: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.plan.limits.in_flight, self.plan.limits.queue)
        plans = self.plan.variants
        self.variants = {
            name: Variant(self.name, name, plans[name], self.metrics, self.patience) for name in self._order()
        }

    async def start(self) -> None:
        """Load the variants that are not loaded yet; EngineError where one cannot be, and those are closed then."""
        fresh = [variant for variant in self.variants.values() if not variant.is_started]
        try:
            for variant in fresh:
                await variant.start()
        except BaseException:
            for variant in fresh:
                await variant.close()
            raise

    async def close(self) -> None:
        """End all engines."""
        for variant in self.variants.values():
            await variant.close()

    def take_over(self, old: Served) -> None:
        """Go on with the variants of `old` that are the same, and with what is known of them, in place of its own."""
        for name, variant in old.variants.items():
            if name in self.variants and variant.is_same(self.plan.variants[name]):
                self.variants[name] = variant
        if self.variants[self.plan.primary] is old.variants.get(old.plan.primary):
            self.ladder = old.ladder

    def is_same(self, plan: ModelPlan) -> bool:
        """Whether it serves what `plan` says, from the files that lie there now."""
        return plan == self.plan and all(one.is_same(plan.variants[name]) for name, one in self.variants.items())

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered or waits."""
        return not self.admission.active and not self.admission.waiting

    @property
    def is_tensor(self) -> bool:
        """Whether it takes tensors, not text."""
        return self.plan.is_tensor

    @property
    def answering(self) -> str:
        """The variant that answers where nothing is wrong with it."""
        return self.plan.fallback if self.is_rolled_back and self.plan.fallback else self.plan.primary

    @property
    def is_ready(self) -> bool:
        """Whether some variant answers."""
        return any(
            variant.is_ready
            for name, variant in self.variants.items()
            if not self.is_rolled_back or name != self.plan.primary
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the engine said of itself; that of the first variant that is loaded."""
        engines = [self.variants[name].engine for name in self._order()]
        return next((engine.facts for engine in engines if engine.facts), {})

    def _order(self) -> Iterator[str]:
        yield self.plan.primary
        if self.plan.fallback is not None:
            yield self.plan.fallback

    @asynccontextmanager
    async def answered(self, request: dict[str, Any], payload: bytes = b"") -> AsyncIterator[Reply]:
        """Yield a reply that has begun; what is left of it at the end is cancelled.

        Raises BusyError, TooLateError, EngineError where nobody can answer, and RequestError where nobody would.
        """
        arrived = time.monotonic()
        deadline = asyncio.get_running_loop().time() + self.plan.limits.deadline_s
        async with self.admission.entered(deadline):
            gauge = self.metrics.in_flight.labels(self.name)
            gauge.inc()
            try:
                async with self._begun(request, payload, deadline) as reply:
                    labels, first = (self.name, reply.variant), time.monotonic() - arrived
                    self.metrics.first.labels(*labels).observe(first)
                    yield reply
                    whole = time.monotonic() - arrived
                    self.metrics.seconds.labels(*labels).observe(whole)
                    # Once the answer has left: nobody waits for what is only noted down.
                    asyncio.get_running_loop().call_soon(self._record, request, payload, reply, first, whole)
            except (EngineError, TooLateError):
                self._record_failure()
                raise
            finally:
                gauge.dec()

    def _record(self, request: dict[str, Any], payload: bytes, reply: Reply, first_s: float, whole_s: float) -> None:
        """Write down what became of a request."""
        if reply.is_cut:
            self._record_failure(reply.variant)
            return
        recorder = self.metrics.recorder
        recorder.answered(self.name, reply.variant, first_s, whole_s, reply.tokens)
        if reply.reason and not self.is_rolled_back:
            recorder.fell_back(self.name, self.plan.primary)
            self.metrics.fell_back.labels(self.name, self.plan.primary).inc()
        recorder.asked(self.name, request, payload)
        recorder.told(self.name, reply.variant, reply.held, reply.tokens)
        for follow in recorder.followers:
            follow(self.name, reply.variant, request, payload, reply.held)

    def _record_failure(self, variant: str | None = None) -> None:
        self.metrics.recorder.failed(self.name, variant or self.answering)
        self.metrics.failed.labels(self.name, variant or self.answering).inc()

    @asynccontextmanager
    async def _begun(self, request: dict[str, Any], payload: bytes, deadline: float) -> AsyncIterator[Reply]:
        if self.is_rolled_back:
            async with self._in_full(request, payload, deadline, "rolled back", self.watch(request)) as reply:
                yield reply
            return
        case = self.ladder.admit(
            time.monotonic(),
            is_streaming=bool(request.get("body", {}).get("stream")),
            remaining_s=deadline - asyncio.get_running_loop().time(),
            full_s=self._full_s,
        )
        decision, attempt = case.decision, None
        if case.permit is not None:
            attempt = _Attempt(self, case, deadline, self.watch(request))
            async with aclosing(self.variants[self.plan.primary].run(request, payload)) as parts:
                try:
                    decision = await attempt.hold(parts)
                    if decision.action == "full precision" and decision.cause == "low margin":
                        async with self._surer(attempt, request, payload, parts) as reply:
                            yield reply
                        return
                    if decision.action == "quantized":
                        yield Reply(self.plan.primary, attempt.held, attempt.rest(parts))
                        return
                finally:
                    if decision.action != "full precision":
                        attempt.finish()
        if decision.action == "refuse":
            raise self._refusal(decision, "" if attempt is None else attempt.reason)
        twin, fails_too = self.watch(request), False
        try:
            async with self._in_full(request, payload, deadline, str(decision.cause or decision.reason), twin) as reply:
                yield reply
        except EngineError:
            fails_too = True
            raise
        finally:
            if attempt is not None:
                attempt.finish(twin, fails_too=fails_too)

    @asynccontextmanager
    async def _surer(
        self, attempt: _Attempt, request: dict[str, Any], payload: bytes, parts: AsyncGenerator[Answer, None]
    ) -> AsyncIterator[Reply]:
        """The fallback's answer in place of one that is sound but not sure; the latter where there is none in time."""
        twin, now = self.watch(request), asyncio.get_running_loop().time()
        until = now + HINT_SHARE * (attempt.deadline - now)
        shown: Watch | None = twin
        try:
            async with AsyncExitStack() as stack:
                try:
                    full = self._in_full(request, payload, until, "low margin", twin)
                    reply = await stack.enter_async_context(full)
                except (EngineError, TooLateError):
                    shown, reply = None, attempt.as_it_is(parts)
                else:
                    await parts.aclose()
                yield reply
        finally:
            attempt.finish(shown)

    def _refusal(self, decision: Decision, failure: str) -> Exception:
        """What the client is told where nobody can answer."""
        self.metrics.refused.labels((decision.cause or decision.reason).replace(" ", "_")).inc()
        if decision.cause == "timeout":
            return TooLateError(f"{self.name}: no answer in {self.plan.limits.deadline_s:g} s")
        why = failure or ", ".join(finding.sentinel for finding in decision.progress.findings)
        return EngineError(f"{self.name}: {decision.reason}" + (f": {why}" if why else ""))

    @asynccontextmanager
    async def _in_full(
        self, request: dict[str, Any], payload: bytes, deadline: float, reason: str, twin: Watch
    ) -> AsyncIterator[Reply]:
        """The fallback's answer; `twin` is shown what it says."""
        name = self.plan.fallback
        assert name is not None, "the ladder knows whether there is one"
        self.metrics.fallbacks.labels(self.name, reason.replace(" ", "_")).inc()
        async with aclosing(self.variants[name].run(request, payload)) as parts:
            try:
                async with asyncio.timeout_at(deadline):
                    first = await anext(parts, None)
            except TimeoutError:
                raise TooLateError(f"{self.name}: no answer in {self.plan.limits.deadline_s:g} s") from None

            async def rest() -> AsyncIterator[Answer]:
                async for part in parts:
                    shown(twin, part, self.name)
                    yield part

            held = [] if first is None else [first]
            for part in held:
                shown(twin, part, self.name)
            yield Reply(name, held, rest(), reason)

    @property
    def _full_s(self) -> float | None:
        """Seconds that the fallback needs: none to speak of, None where there is none that answers."""
        fallback = self.plan.fallback
        return 0.0 if fallback is not None and self.variants[fallback].is_ready else None

    def watch(self, request: Mapping[str, Any]) -> Watch:
        """The sentinels of one answer."""
        return TensorWatch() if self.is_tensor else TextWatch("max_tokens" in request.get("body", ()))


class _Attempt:
    """The primary's answer to one request, judged as it comes."""

    def __init__(self, model: Served, case: Case, deadline: float, watch: Watch) -> None:
        self.model, self.case, self.deadline = model, case, deadline
        self.held: list[Answer] = []
        self.reason = ""
        self._watch, self._sent = watch, 0
        self._decision, self._is_done = case.decision, False
        self._failure: Failure | None = None

    async def hold(self, parts: AsyncGenerator[Answer, None]) -> Decision:
        """Take parts until it is decided who answers."""
        loop = asyncio.get_running_loop()
        has_other = self.model.plan.fallback is not None
        now = loop.time()
        until = now + PRIMARY_SHARE * (self.deadline - now) if has_other else self.deadline
        try:
            async with asyncio.timeout_at(until):
                return await self._held(parts)
        except TimeoutError:
            return self._judge(failure="timeout")
        except EngineError as error:
            self.reason = str(error)
            return self._judge(failure="error")

    async def _held(self, parts: AsyncGenerator[Answer, None]) -> Decision:
        async for part in parts:
            self.held.append(part)
            shown(self._watch, part, self.model.name)
            decision = self._judge()
            if decision.action != "wait":
                return decision
        return self._judge(is_finished=True)

    def as_it_is(self, parts: AsyncGenerator[Answer, None]) -> Reply:
        """What was held for want of certainty, and what comes after it."""
        self._decision = replace(self._decision, action="quantized", reason="hint ignored")
        return Reply(self.model.plan.primary, self.held, self.rest(parts))

    async def rest(self, parts: AsyncGenerator[Answer, None]) -> AsyncIterator[Answer]:
        """Yield what comes after `held`; EngineError where it turns out to be garbage."""
        self._sent = self._watch.tokens
        try:
            async for part in parts:
                shown(self._watch, part, self.model.name)
                if self._judge().action == "end":
                    names = ", ".join(finding.sentinel for finding in self._watch.findings)
                    raise EngineError(f"{self.model.name}: the answer went wrong: {names}")
                yield part
                self._sent = self._watch.tokens
        except EngineError:
            if self._decision.action != "end":
                self._judge(failure="error")
            raise
        self._is_done = True

    def finish(self, twin: Watch | None = None, *, fails_too: bool = False) -> None:
        """Tell the ladder what became of it.

        twin       the full-precision answer to the same: what it shows too is no fault of the quantized variant,
        fails_too  and nor is it where that engine fails as well
        """
        if fails_too and self._failure == "error":
            self._failure = None
        progress = self._progress()
        findings = progress.findings
        if findings and twin is not None:
            excused = {finding.sentinel for finding in twin.findings}
            findings = tuple(finding for finding in findings if finding.sentinel not in excused)
            progress = replace(progress, findings=findings)
        ended = self._watch.ended or ("stop" if self._is_done else "cancelled")
        ended = "error" if self._failure is not None else ended
        settled = self.model.ladder.finish(self.case, progress, self._decision, ended, time.monotonic())
        for finding in (*findings, *([settled.finding] if settled.finding else [])):
            self.model.metrics.findings.labels(self.model.name, self.model.plan.primary, finding.sentinel).inc()

    def _judge(self, *, failure: Failure | None = None, is_finished: bool = False) -> Decision:
        self._failure = failure
        self._is_done = self._is_done or is_finished
        decision = self.model.ladder.judge(self.case, self._progress(), time.monotonic())
        self._decision = decision
        return decision

    def _progress(self) -> Progress:
        watch = self._watch
        return Progress(
            tokens=watch.tokens,
            sent=self._sent,
            is_finished=self._is_done or watch.ended is not None,
            findings=watch.findings,
            failure=self._failure,
            remaining_s=self.deadline - asyncio.get_running_loop().time(),
            full_s=self.model._full_s,
        )
