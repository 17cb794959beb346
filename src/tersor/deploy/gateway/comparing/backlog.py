"""Work behind the answers: a bounded queue that never makes a client wait.

What does not fit is dropped and counted. What is done takes a processor from whoever is answered meanwhile, and of
requests that come at random as large a part meets it as it takes of the time: that part is bounded. With less than one
in a hundred, the 99th percentile of latency cannot move far, whatever a variant does and wherever it runs. Nothing is
begun while the model has much to do, and rather while it answers nobody; what has begun is one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tersor.deploy.gateway.admission import Admission
from tersor.deploy.gateway.comparing.comparison import Exchange

__all__ = ["Backlog"]

QUEUE = 64
BUSY_SHARE = 0.5
"""Of the requests that a model takes at once: with more than that, the work waits."""
POLL_S = 0.01
IDLE_POLLS = 5
"""As long as the work waits for a moment in which the model answers nobody; many models have none."""
MOST_POLLS = 500
MOST_DEBT_S = 10.0
"""Of one exchange that counts against the share of time: a variant that hangs takes no processor."""
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Backlog:
    """Exchanges that wait to be worked on, one at a time.

    admission  of the model: how busy it is
    work       is given each
    on_drop    is told why one was dropped: full, time, busy or error
    time_share part of the time that the work may take, 0 … 1
    """

    name: str
    admission: Admission
    work: Callable[[Exchange], Awaitable[None]]
    on_drop: Callable[[str], None] = lambda _reason: None
    time_share: float = 1.0
    dropped: Counter[str] = field(default_factory=Counter, init=False)
    in_flight: int = field(default=0, init=False)
    _queue: deque[Exchange] = field(default_factory=deque, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _more: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _free_at: float = field(default=0.0, init=False)
    _began: float | None = field(default=None, init=False)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def lasts_s(self) -> float:
        """Seconds that what is worked on has lasted; 0 where nothing is."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.create_task(self._work(), name=self.name)

    async def close(self) -> None:
        """End; what waits is forgotten."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._queue.clear()

    def offer(self, exchange: Exchange) -> None:
        """Take what was answered, if there is room."""
        if len(self._queue) >= QUEUE or not exchange.is_small:
            self.drop("full")
            return
        if self._queue and time.monotonic() < self._free_at:
            self.drop("time")  # one is at hand when the next may be worked on, and fresh
            return
        self._queue.append(exchange)
        self._more.set()

    def drop(self, reason: str) -> None:
        """Count one that nothing comes of."""
        self.dropped[reason] += 1
        self.on_drop(reason)

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
            exchange = self._queue.popleft()
            if not await self._is_quiet():
                self.drop("busy")
                continue
            self.in_flight += 1
            began = self._began = time.monotonic()
            try:
                await self.work(exchange)
            except Exception:  # the work is no client's: the next one may go well
                _log.exception("%s: failed", self.name)
                self.drop("error")
            finally:
                self.in_flight, self._began = self.in_flight - 1, None
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
