"""Work behind the answers: a bounded queue that never makes a client wait.

What does not fit is dropped and counted. Nothing is begun while the model has much to do, and what has begun is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tersor.deploy.gateway.admission import Admission
from tersor.deploy.gateway.rolling.comparison import Exchange

__all__ = ["Backlog"]

QUEUE = 64
BUSY_SHARE = 0.5
"""Of the requests that a model takes at once: with more than that, the work waits."""
POLL_S = 0.02
MOST_POLLS = 250
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Backlog:
    """Exchanges that wait to be worked on, one at a time.

    admission  of the model: how busy it is
    work       is given each
    on_drop    is told why one was dropped: full, busy or error
    """

    name: str
    admission: Admission
    work: Callable[[Exchange], Awaitable[None]]
    on_drop: Callable[[str], None] = lambda _reason: None
    dropped: Counter[str] = field(default_factory=Counter, init=False)
    in_flight: int = field(default=0, init=False)
    _queue: deque[Exchange] = field(default_factory=deque, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _more: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

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
            exchange = self._queue.popleft()
            if not await self._is_quiet():
                self.drop("busy")
                continue
            self.in_flight += 1
            try:
                await self.work(exchange)
            except Exception:  # the work is no client's: the next one may go well
                _log.exception("%s: failed", self.name)
                self.drop("error")
            finally:
                self.in_flight -= 1

    async def _is_quiet(self) -> bool:
        """Wait until the model has little to do; not for ever."""
        for _ in range(MOST_POLLS):
            if not self.admission.waiting and self.admission.active <= BUSY_SHARE * self.admission.in_flight:
                return True
            await asyncio.sleep(POLL_S)
        return False
