"""Primaries that are compared with full precision while they serve, whether or not anything is rolled out."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tersor.deploy.gateway.comparing.comparison import Exchange, Rest
from tersor.deploy.gateway.comparing.shadow import Shadow
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Reply, Served

__all__ = ["Primaries"]

_chance = random.SystemRandom()


@dataclass(eq=False)
class Primaries:
    """A shadow for each model that has a fallback, begun with the first request that is in the sample."""

    metrics: Metrics
    shadows: dict[str, tuple[Served, Shadow]] = field(default_factory=dict, init=False)

    def answered(
        self, model: Served, request: dict[str, Any], payload: bytes, share: float
    ) -> AbstractAsyncContextManager[Reply]:
        """Return what holds a reply, as `Served.answered` does; it is compared afterwards where it is in the sample.

        share  of requests that are, percent
        """
        is_sampled = share > 0 and model.plan.fallback is not None and _chance.random() * 100 < share
        return self._followed(model, request, payload, share) if is_sampled else model.answered(request, payload)

    @asynccontextmanager
    async def _followed(
        self, model: Served, request: dict[str, Any], payload: bytes, share: float
    ) -> AsyncIterator[Reply]:
        async with model.answered(request, payload) as reply:
            if reply.variant != model.plan.primary:
                yield reply
                return
            exchange = Exchange(request, payload)
            rest = Rest(reply.held, reply.rest, exchange)
            reply.rest = rest.parts()
            yield reply
        if not rest.has_failed:
            (await self._shadow(model, share)).offer(exchange)

    async def close(self) -> None:
        """End all comparisons."""
        for _, shadow in self.shadows.values():
            await shadow.close()
        self.shadows = {}

    async def _shadow(self, model: Served, share: float) -> Shadow:
        """The shadow of a model as it is loaded now; of the time it may take as large a share as of the requests."""
        known = self.shadows.get(model.name)
        if known is not None and known[0] is model:
            return known[1]
        reference, primary = (model.variants[str(name)] for name in (model.plan.fallback, model.plan.primary))
        made = Shadow(model.name, reference, primary, model.admission, self.metrics, time_share=share / 100)
        self.shadows[model.name] = model, made
        made.start()
        if known is not None:
            await known[1].close()
        return made
