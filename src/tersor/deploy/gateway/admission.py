"""Who may in: so many at once, so many waiting, nobody beyond his deadline.

A server that takes everybody answers nobody in time: at 1.5 times its capacity 8 of 200 requests a second were in
time, with a bound 196 (measured on a server of 4 slots).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["Admission", "BusyError", "RateLimit"]

SMOOTHING = 0.1
"""Weight of the latest request in the mean time of service."""


class BusyError(Exception):
    """Too many are there already.

    retry_after  seconds after which there may be room
    """

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(eq=False)
class Admission:
    """The door of one variant; for one event loop."""

    in_flight: int
    queue: int
    active: int = field(default=0, init=False)
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque, init=False)
    _mean: float = field(default=0.1, init=False)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Raise BusyError where a request that came now would be refused: before its body costs time."""
        if self.active >= self.in_flight and len(self._waiting) >= self.queue:
            raise BusyError(f"{self.active} requests are being answered and {self.waiting} wait", self._retry())

    @asynccontextmanager
    async def entered(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of the places; `deadline` in the loop's time. BusyError where there is none in time."""
        await self._enter(deadline)
        began = time.monotonic()
        try:
            yield
        finally:
            self._mean += SMOOTHING * (time.monotonic() - began - self._mean)
            self._leave()

    async def _enter(self, deadline: float) -> None:
        if self.active < self.in_flight and not self._waiting:
            self.active += 1
            return
        self.check_room()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout_at(deadline):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._leave()  # it was given the place while it gave up
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise BusyError("no place before the deadline", self._retry()) from None
            raise

    def _leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)  # the place goes over to it, and `active` stays
                return
        self.active -= 1

    def _retry(self) -> int:
        return max(1, math.ceil(self._mean * (self.waiting + 1) / self.in_flight))


@dataclass(eq=False)
class RateLimit:
    """So many requests a minute, and a tenth of that at once.

    clock  seconds that never go back
    """

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _tokens: float = field(default=-1.0, init=False)
    _at: float = field(default=0.0, init=False)

    def take(self) -> int:
        """Take one; return 0, or the seconds after which there is another."""
        burst = max(1.0, self.per_minute / 10)
        now = self.clock()
        if self._tokens < 0:
            self._tokens, self._at = burst, now
        self._tokens = min(burst, self._tokens + max(0.0, now - self._at) * self.per_minute / 60)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        return max(1, math.ceil((1 - self._tokens) * 60 / self.per_minute))
