"""Comparisons behind the answers: a bounded queue that never makes a client wait.

What does not fit is dropped and counted. A comparison takes a processor from whoever is answered meanwhile, and of
requests that come at random as large a part meets one as comparisons take of the time: that part is bounded. With less
than one in a hundred, the 99th percentile of latency cannot move far, whatever a candidate does and wherever it runs.
Nothing is begun while the model has much to do, and rather while it answers nobody.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tersor.deploy.gateway.admission import Admission
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.rolling.comparison import Compared, Exchange, NoReferenceError, compared
from tersor.deploy.gateway.variants import Variant

__all__ = ["Shadow"]

QUEUE = 64
AT_ONCE = 1
PATIENCE_S = 30.0
"""Of one comparison; the candidate is at fault where it takes longer."""
BUSY_SHARE = 0.5
"""Of the requests that a model takes at once: with more than that, comparisons wait."""
POLL_S = 0.01
IDLE_POLLS = 5
"""As long as a comparison waits for a moment in which the model answers nobody; many models have none."""
MOST_POLLS = 500
MOST_DEBT_S = 10.0
"""Of one comparison that counts against the share of time: a candidate that hangs takes no processor."""
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Shadow:
    """The comparisons of one candidate.

    admission  of the model: how busy it is
    told       is told each comparison
    time_share part of the time that comparisons may take, 0 … 1
    """

    model: str
    reference: Variant
    candidate: Variant
    admission: Admission
    metrics: Metrics
    told: Callable[[Compared], None]
    time_share: float = 1.0
    patience_s: float = PATIENCE_S
    dropped: Counter[str] = field(default_factory=Counter, init=False)
    compared: int = field(default=0, init=False)
    agreed: float = field(default=0.0, init=False)
    failed: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    sums: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)
    _queue: deque[Exchange] = field(default_factory=deque, init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _more: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _chance: random.Random = field(default_factory=random.SystemRandom, init=False)
    _free_at: float = field(default=0.0, init=False)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to work."""
        self._tasks = [asyncio.create_task(self._work(), name=f"shadow {self.model}") for _ in range(AT_ONCE)]

    async def close(self) -> None:
        """End; what waits is forgotten."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._queue.clear()

    def mean(self, name: str) -> float | None:
        """Return the mean distance or divergence so far; None: there was none."""
        count, total = self.sums.get(name, (0, 0.0))
        return total / count if count else None

    def offer(self, exchange: Exchange) -> None:
        """Take what was answered, if there is room."""
        if len(self._queue) >= QUEUE or not exchange.is_small:
            self._drop("full")
            return
        if self._queue and time.monotonic() < self._free_at:
            self._drop("time")  # one is at hand when the next may be made, and fresh
            return
        self._queue.append(exchange)
        self._more.set()

    def _drop(self, reason: str) -> None:
        self.dropped[reason] += 1
        self.metrics.shadow_dropped.labels(self.model, self.candidate.name, reason).inc()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
            exchange = self._queue.popleft()
            if not await self._is_quiet():
                self._drop("busy")
                continue
            self.in_flight += 1
            began = time.monotonic()
            try:
                await self._compare(exchange)
            except Exception:  # a comparison is no client's: the next one may go well
                _log.exception("%s: a comparison failed", self.model)
                self._drop("error")
            finally:
                self.in_flight -= 1
                now = time.monotonic()
                self._free_at = now + min(MOST_DEBT_S, now - began) * (1 / self.time_share - 1)

    async def _is_quiet(self) -> bool:
        """Wait until the model has nothing to do, or little after a while; not for ever."""
        for number in range(MOST_POLLS):
            most = 0 if number < IDLE_POLLS else BUSY_SHARE * self.admission.in_flight
            if not self.admission.waiting and self.admission.active <= most:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _compare(self, exchange: Exchange) -> None:
        try:
            found = await compared(exchange, self.reference, self.candidate, self._chance, self.patience_s)
        except NoReferenceError:
            self._drop("reference")
            return
        self.compared += 1
        self.agreed += found.agreement
        self.failed += bool(found.failed)
        labels = self.model, self.candidate.name
        self.metrics.shadow_compared.labels(*labels).inc()
        self.metrics.shadow_agreed.labels(*labels).inc(found.agreement)
        for name in ("distance", "divergence"):
            value = getattr(found, name)
            if value is not None:
                count, total = self.sums.get(name, (0, 0.0))
                self.sums[name] = (count + 1, total + value)
        self.told(found)
