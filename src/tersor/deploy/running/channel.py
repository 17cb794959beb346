"""The gateway's end of the socket to an engine's process.

What is sent in one turn of the loop leaves in one piece, and what comes in one piece is taken in one turn: a thousand
small requests a second would otherwise spend their time in waking one another up.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Self, cast

from tersor.deploy.running.messages import Closed, Message, Unpacker, packed

__all__ = ["Channel", "Inbox", "Take"]

Take = Callable[[dict[str, Any], bytes], None]


class Inbox:
    """What comes for one request; None: nothing will. For one reader; asyncio's queue does more, and takes longer."""

    __slots__ = ("_messages", "_waiter")

    def __init__(self) -> None:
        self._messages: deque[Message | None] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, message: Message | None) -> None:
        """Add what came last."""
        self._messages.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Message | None:
        """Take what came first, once something has."""
        while not self._messages:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._messages.popleft()


class Channel(asyncio.Protocol):
    """Open it with `opened`; `take` is given every message.

    closed  is done once nothing comes any more: the process died, or said what is no message
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._unpacker = Unpacker()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._queued: list[bytes] = []
        self._room = asyncio.Event()
        self._room.set()
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def opened(cls, ours: socket.socket, take: Take) -> Self:
        """Take over one end of a pair of sockets."""
        _, made = await asyncio.get_running_loop().create_unix_connection(lambda: cls(take), sock=ours)
        return made

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Send at the end of this turn of the loop; ConnectionResetError where nobody is there to hear it."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the engine's process is gone")
        if not self._queued:
            self._loop.call_soon(self._flush)
        self._queued.append(packed(message, payload))

    async def drained(self) -> None:
        """Wait while the engine does not read what was sent; ConnectionResetError where it never will."""
        if not self._room.is_set():
            await self._room.wait()
        if self.closed.done():
            raise ConnectionResetError("the engine's process is gone")

    def close(self) -> None:
        """Send and take nothing any more."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        queued, self._queued = self._queued, []
        if self._transport is not None:
            self._transport.write(queued[0] if len(queued) == 1 else b"".join(queued))

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport = cast("asyncio.Transport", transport)  # that of another loop is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Take what is complete; whoever speaks something else is not listened to any more."""
        try:
            for message, payload in self._unpacker.feed(data):
                self._take(message, payload)
        except (Closed, ValueError, KeyError, TypeError):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Wake whoever waits."""
        del error
        self._room.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """There is much that the engine has not read."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It has read it."""
        self._room.set()
