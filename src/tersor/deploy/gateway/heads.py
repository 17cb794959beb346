"""What uvicorn's protocol lacks: heads within bounds of size and time, and answers in one piece.

The parser alone waits for ever, and takes what comes; head and body of an answer would be a call of the kernel each,
which is a twentieth of what a small answer costs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette.requests import Request
    from uvicorn.protocols.http import httptools_impl
else:
    httptools_impl = LazyModule("uvicorn.protocols.http.httptools_impl", "serve")

__all__ = ["CUT", "HEAD_BYTES", "Gathering", "bounded_protocol", "header"]

FOUND = "tersor.headers"
"""Where the headers of a request are kept once somebody asked for one."""
CUT = "tersor.cut"
"""Where a request has what ends its connection at once, whatever was not sent yet."""
HEAD_BYTES = 64 << 10
"""Of a head that is not complete yet; what comes at once with its end is let through, one read at most."""


def header(request: Request, name: str, default: str = "") -> str:
    """Return the first value of a header; `name` in small letters. Starlette goes through all of them each time."""
    found: dict[bytes, bytes] | None = request.scope.get(FOUND)
    if found is None:
        found = request.scope[FOUND] = dict(reversed(request.scope["headers"]))
    value = found.get(name.encode("latin-1"))
    return default if value is None else value.decode("latin-1")


class Gathering:
    """A transport that sends what is written in one turn of the loop at the end of that turn, as one piece."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._soon = transport, loop.call_soon
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send it behind what was written before."""
        if not self._pieces:
            self._soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        """Close once all is sent."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def bounded_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, which closes connections whose heads take longer than `seconds` or too many bytes."""

    class Bounded(httptools_impl.HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _is_head, _size = True, 0

        def connection_made(self, transport: Any) -> None:
            gathering: Any = Gathering(transport, self.loop)
            super().connection_made(gathering)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._is_head, self._size = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_head = False
            self._stop()
            super().on_headers_complete()
            scope: Any = self.scope  # which has keys of its own alone, as its type says
            scope[CUT] = self.transport.abort

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._size += len(data)
            if self._is_head and self._size > HEAD_BYTES:
                self.transport.close()
            elif self._is_head and self._timer is None:  # most heads come whole, and need no timer
                self._wait()

        def _wait(self) -> None:
            self._timer = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Bounded
