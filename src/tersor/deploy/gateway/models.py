"""A served model: its variants in their processes, and which of them answers a request.

The primary answers. Where its engine is gone, fails or is late before the first part of the answer, the fallback does;
once something was sent nobody else goes on with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tersor.core.errors import EngineError
from tersor.deploy.config import ModelPlan, VariantPlan
from tersor.deploy.gateway.admission import Admission
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.running.supervised import Answer, Patience, Running, State

__all__ = ["Reply", "Served", "TooLateError"]

PRIMARY_SHARE = 0.5
"""Of the time until the deadline that the primary gets where there is a fallback."""


class TooLateError(Exception):
    """No variant began to answer before the deadline."""


@dataclass(eq=False)
class Reply:
    """An answer that has begun.

    variant  who gives it
    first    its first part, None where it has none
    rest     the parts behind it
    reason   why the fallback gives it; empty: it does not
    """

    variant: str
    first: Answer | None
    rest: AsyncIterator[Answer]
    reason: str = ""

    async def parts(self) -> AsyncIterator[Answer]:
        """Yield all parts."""
        if self.first is not None:
            yield self.first
            async for part in self.rest:
                yield part


@dataclass(eq=False)
class Served:
    """One model of a deployment."""

    name: str
    plan: ModelPlan
    metrics: Metrics
    patience: Patience = field(default_factory=Patience)
    engines: dict[str, Running] = field(default_factory=dict, init=False)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.plan.limits.in_flight, self.plan.limits.queue)
        self.engines = {name: self._engine(name, variant) for name, variant in self.plan.variants.items()}

    def _engine(self, name: str, variant: VariantPlan) -> Running:
        ready, starts = self.metrics.ready.labels(self.name, name), self.metrics.starts.labels(self.name, name)

        def told(state: State, reason: str) -> None:
            del reason
            ready.set(state == "ready")
            if state == "ready":
                starts.inc()

        options = {
            "path": variant.path, "threads": variant.threads, "slots": variant.slots, "context": variant.context,
            "embeddings": variant.embeddings,
        }  # fmt: skip
        return Running(f"{self.name}/{name}", variant.engine, options, self.patience, told)

    async def start(self) -> None:
        """Load the variants that answer; EngineError where one cannot be."""
        try:
            for name in self._order():
                await self.engines[name].start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End all engines."""
        for engine in self.engines.values():
            await engine.close()

    @property
    def is_tensor(self) -> bool:
        """Whether it takes tensors, not text."""
        return self.plan.variants[self.plan.primary].engine == "onnxruntime"

    @property
    def is_ready(self) -> bool:
        """Whether some variant answers."""
        return any(self.engines[name].state == "ready" for name in self._order())

    @property
    def facts(self) -> dict[str, Any]:
        """What the engine said of itself; that of the first variant that is loaded."""
        return next((self.engines[name].facts for name in self._order() if self.engines[name].facts), {})

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
            gauge.set(self.admission.active)
            try:
                async with self._begun(request, payload, deadline) as reply:
                    labels = self.name, reply.variant
                    self.metrics.first.labels(*labels).observe(time.monotonic() - arrived)
                    yield reply
                    self.metrics.seconds.labels(*labels).observe(time.monotonic() - arrived)
            finally:
                gauge.set(self.admission.active - 1)

    @asynccontextmanager
    async def _begun(self, request: dict[str, Any], payload: bytes, deadline: float) -> AsyncIterator[Reply]:
        now = asyncio.get_running_loop().time()
        names = list(self._order())
        reason = ""
        for place, name in enumerate(names):
            is_last = place == len(names) - 1
            until = deadline if is_last else now + PRIMARY_SHARE * (deadline - now)
            async with aclosing(self.engines[name].run(request, payload)) as parts:  # type: ignore[type-var]
                try:
                    async with asyncio.timeout_at(until):
                        first = await anext(parts, None)
                except TimeoutError:
                    if is_last:
                        raise TooLateError(f"{self.name}: no answer in {self.plan.limits.deadline_s:g} s") from None
                    reason = "late"
                    continue
                except EngineError:
                    if is_last:
                        raise
                    reason = "error"
                    continue
                if reason:
                    self.metrics.fallbacks.labels(self.name, reason).inc()
                yield Reply(name, first, parts, reason)
                return
