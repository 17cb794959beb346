"""A request that is sent again by the same client gets the same answer, and counts once.

Clients try again when an answer is lost on its way; `Idempotency-Key` names what is the same. Answers are kept for a
while and within bounds. A stream is kept as it was sent, once it has come to its end; asked for again it comes in one
piece. Until then, or where it broke off, it is made anew, by the same variant, for its cohort is drawn by that name.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tersor.deploy.running.supervised import RequestError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette import responses
    from starlette.responses import Response
else:
    responses = LazyModule("starlette.responses", "serve")

__all__ = ["Retries"]

UNPROCESSABLE, BAD_REQUEST, OK = 422, 400, 200
MOST, MOST_BYTES, MOST_NAME = 1024, 32 << 20, 256
MOST_ONE = MOST_BYTES // 8
KEEP_S = 600.0
END = b"data: [DONE]\n\n"
"""Of a stream that broke off there is none."""


@dataclass
class _Kept:
    """What was answered to a request with this digest; None while it is being answered."""

    digest: bytes
    at: float
    answer: tuple[bytes, Mapping[str, str]] | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def size(self) -> int:
        return len(self.answer[0]) if self.answer else 0


class Retries:
    """Answers by who asked and what he called it; the oldest leave first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    async def once(
        self, name: tuple[str, str], body: bytes, make: Callable[[], Awaitable[Response]],
        again: Callable[[bytes, Mapping[str, str]], Response],
    ) -> Response:  # fmt: skip
        """Return what `make` does, or `again` of what it did for this name before.

        name  of the client and of the request; without the latter nothing is kept
        body  with the path: what must be the same
        Raises RequestError: 422 where the name was another request's, 400 for a name that is too long.
        """
        if not name[1]:
            return await make()
        if len(name[1]) > MOST_NAME:
            raise RequestError(f"an Idempotency-Key may have {MOST_NAME} letters", BAD_REQUEST)
        digest = hashlib.sha256(body).digest()
        while (kept := self._found(name)) is not None:
            if kept.digest != digest:
                raise RequestError("this Idempotency-Key was another request's", UNPROCESSABLE)
            if kept.answer is not None:
                return again(*kept.answer)
            await kept.done.wait()
        kept = self._kept[name] = _Kept(digest, self._clock())
        try:
            response = await make()
            if response.status_code == OK and isinstance(response, responses.StreamingResponse):
                # Nobody waits for its end: the connection that it goes to may be dead.
                return _recorded(response, lambda sent: self._add(name, digest, sent, response.headers))
            content = getattr(response, "body", None)
            if response.status_code == OK and isinstance(content, bytes):
                self._keep(kept, content, response.headers)
            return response
        finally:
            kept.done.set()
            if kept.answer is None:  # it failed, or cannot be kept: the next one asks for itself
                self._kept.pop(name, None)
            self._shrink()

    def _keep(self, kept: _Kept, content: bytes, headers: Mapping[str, str]) -> None:
        if len(content) <= MOST_ONE:
            kept.answer = content, {key: value for key, value in headers.items() if key != "content-length"}
            self._bytes += kept.size

    def _add(self, name: tuple[str, str], digest: bytes, sent: bytes, headers: Mapping[str, str]) -> None:
        """Keep a stream that came to its end, unless another of that name did before."""
        if name in self._kept:
            return
        kept = self._kept[name] = _Kept(digest, self._clock())
        self._keep(kept, sent, headers)
        kept.done.set()
        self._shrink()

    def _found(self, name: tuple[str, str]) -> _Kept | None:
        kept = self._kept.get(name)
        if kept is not None and kept.answer is not None and self._clock() - kept.at > KEEP_S:
            self._forget(name)
            return None
        return kept

    def _shrink(self) -> None:
        """Let the oldest go that are answered, until all is within bounds."""
        for name in list(self._kept):
            if len(self._kept) <= MOST and self._bytes <= MOST_BYTES:
                return
            if self._kept[name].answer is not None:
                self._forget(name)

    def _forget(self, name: tuple[str, str]) -> None:
        self._bytes -= self._kept.pop(name).size


def _recorded(response: Response, ended: Callable[[bytes], None]) -> Response:
    """Return a response that tells all that was sent of it; not where it broke off, or is too long to keep."""

    class Recorded(responses.Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            sent, is_small, is_whole = bytearray(), True, False

            async def noted(message: Any) -> None:
                nonlocal is_small, is_whole
                await send(message)
                if message["type"] == "http.response.body":
                    piece = message.get("body", b"")
                    is_small = is_small and len(sent) + len(piece) <= MOST_ONE
                    if is_small:
                        sent.extend(piece)
                    is_whole = not message.get("more_body", False)

            await response(scope, receive, noted)
            if is_whole and is_small and sent.endswith(END):
                ended(bytes(sent))

    return Recorded(status_code=response.status_code)
