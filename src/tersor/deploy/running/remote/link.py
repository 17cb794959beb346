"""HTTP to one remote server: what it answers is bounded in size and time, and whatever goes wrong is an EngineError."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tersor.core.errors import EngineError
from tersor.deploy.load.client import Client
from tersor.deploy.load.exchange import Address, ExchangeError, Take, request_bytes
from tersor.deploy.running.supervised import RequestError

__all__ = ["PROBE_S", "Arriving", "AwayError", "Link", "WrongRemoteError", "parsed"]

LONGEST_S = 3600.0
"""Of one answer, however steadily it comes."""
PROBE_S = 10.0
"""Until a server says whether it is ready."""
MOST_CONNECTIONS = 1024
"""Admission bounds requests long before."""
MOST_BYTES = 16 << 20
"""Of an answer that is parsed, or of a stream that nobody reads as fast as it comes."""
MOST_REFUSAL = 64 << 10
REASON_LETTERS = 400
KINDS = {"connect": "no connection", "tls": "no connection that is secure", "timeout": "no answer in time"}
"""What clients are told, who need not know addresses; other kinds tell themselves."""
AWAY = ("connect", "tls")
REFUSALS = (400, 413, 415, 422)
"""Statuses that say that the request is wrong. Others say that the server is, or what it knows of us."""
MISTAKES = (401, 403, 404)


class AwayError(EngineError):
    """There is no server to be reached; it is looked for until there is."""


class WrongRemoteError(EngineError):
    """The server is there and is not what the deployment says."""


@dataclass(eq=False)
class Arriving:
    """An answer whose status is known, and whose body may still be on its way.

    fields   headers by their names in small letters
    silence  seconds that a piece may take
    """

    name: str
    silence: float
    most: int
    status: int = 0
    fields: Mapping[bytes, bytes] = field(default_factory=dict)
    _pieces: asyncio.Queue[bytes | ExchangeError | None] = field(default_factory=asyncio.Queue)
    _unread: int = 0

    def take(self, piece: bytes) -> None:
        """Keep a piece for who reads; ExchangeError where he is too far behind."""
        self._unread += len(piece)
        if self._unread > self.most:
            raise ExchangeError("too large", f"more than {self.most} bytes")
        self._pieces.put_nowait(piece)

    def end(self, failure: ExchangeError | None = None) -> None:
        """No more will come."""
        self._pieces.put_nowait(failure)

    async def piece(self) -> bytes | None:
        """Return what comes next, None at the end; EngineError where the answer breaks off or nothing comes."""
        try:
            async with asyncio.timeout(self.silence):
                found = await self._pieces.get()
        except TimeoutError:
            raise EngineError(f"{self.name}: nothing came for {self.silence:g} s") from None
        if isinstance(found, ExchangeError):
            raise _failure(self.name, found)
        self._unread -= 0 if found is None else len(found)
        return found

    async def whole(self, most: int | None = None) -> bytes:
        """Return the body; EngineError where it has more than `most` bytes, or comes too slowly as a whole."""
        most, pieces, size = self.most if most is None else most, [], 0
        try:
            async with asyncio.timeout(self.silence):
                while (piece := await self.piece()) is not None:
                    pieces.append(piece)
                    size += len(piece)
                    if size > most:
                        raise EngineError(f"{self.name}: an answer of more than {most} bytes")
        except TimeoutError:
            raise EngineError(f"{self.name}: no whole answer in {self.silence:g} s") from None
        return b"".join(pieces)


@dataclass(eq=False)
class Link:
    """The way to one server.

    name       of the engine, for errors
    key        that it asks for; empty: none
    connect_s  until a connection is there
    answer_s   until a whole answer is there, or the next part of a stream
    """

    name: str
    address: Address
    key: str = field(repr=False)
    context: ssl.SSLContext | None
    connect_s: float
    answer_s: float
    _client: Client = field(init=False)

    def __post_init__(self) -> None:
        self._client = Client(self.address, MOST_CONNECTIONS, self.context, self.connect_s)

    async def find(self) -> None:
        """Look its host up, which may have moved; AwayError where there is none."""
        try:
            async with asyncio.timeout(self.connect_s):
                await self._client.find()
        except (TimeoutError, EngineError) as error:
            raise AwayError(f"{self.name}: its host cannot be found") from error

    async def close(self) -> None:
        """Close what is open."""
        await self._client.close()

    @asynccontextmanager
    async def asked(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        *,
        silence: float | None = None,
        most: int | None = None,
    ) -> AsyncIterator[Arriving]:
        """Yield the answer to a POST of `body`, or a GET, once its status is known; leaving ends the exchange.

        Raises RequestError where the server refuses the request, AwayError, WrongRemoteError, or EngineError.
        """
        fields = {"Accept": "application/json, text/event-stream", **headers}
        if body is not None:
            fields.setdefault("Content-Type", "application/json")
        if self.key:
            fields["Authorization"] = f"Bearer {self.key}"
        wire = request_bytes(self.address, path, body, fields)
        arriving = Arriving(self.name, self.answer_s if silence is None else silence, most or MOST_BYTES)
        head = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._exchanged(wire, arriving, head))
        try:
            async with asyncio.timeout(arriving.silence):
                await asyncio.shield(head)
            await _judge(arriving)
            yield arriving
        except TimeoutError:
            if head.done():
                raise
            raise EngineError(f"{self.name}: no answer in {arriving.silence:g} s") from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not head.cancel() and not head.cancelled():
                head.exception()  # seen, even where nobody waited for it

    async def _exchanged(self, wire: bytes, arriving: Arriving, head: asyncio.Future[None]) -> None:
        def began(status: int, fields: Mapping[bytes, bytes]) -> Take:
            arriving.status, arriving.fields = status, fields
            if not head.done():
                head.set_result(None)
            return arriving.take

        try:
            await self._sent(wire, arriving, began)
        except ExchangeError as error:
            if not head.done():
                head.set_exception(_failure(self.name, error))
            arriving.end(error)
            return
        arriving.end()

    async def _sent(self, wire: bytes, arriving: Arriving, began: Any) -> None:
        """Send once, and again where a kept connection was closed while the request was on its way."""
        deadline = asyncio.get_running_loop().time() + LONGEST_S
        before = self._client.opened
        try:
            await self._client.send(wire, arriving.take, deadline, lambda _: None, began)
        except ExchangeError as error:
            was_kept = self._client.opened == before
            if not was_kept or arriving.status or error.kind not in ("reset", "closed early"):
                raise
            await self._client.send(wire, arriving.take, deadline, lambda _: None, began)

    async def got(self, path: str) -> Any:
        """Return the JSON that a GET brings."""
        async with self.asked(path, silence=min(PROBE_S, self.answer_s)) as arriving:
            return parsed(self.name, await arriving.whole())


def parsed(name: str, data: bytes) -> Any:
    """Return an answer that is JSON; EngineError where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{name}: an answer that is no JSON") from error


def _failure(name: str, error: ExchangeError) -> EngineError:
    kind = AwayError if error.kind in AWAY else EngineError
    made = kind(f"{name}: {KINDS.get(error.kind, error)}")
    made.__cause__ = error
    return made


async def _judge(arriving: Arriving) -> None:
    """Raise what a status that is no success means."""
    name, status = arriving.name, arriving.status
    if status // 100 == 2:
        return
    if status // 100 == 3:
        raise WrongRemoteError(f"{name}: the server sends us elsewhere (status {status}), which is not followed")
    reason = ""
    with contextlib.suppress(EngineError):
        reason = _reason(await arriving.whole(MOST_REFUSAL))
    if status in REFUSALS:
        raise RequestError(reason or f"the server refuses the request with status {status}", status)
    kind = WrongRemoteError if status in MISTAKES else EngineError
    raise kind(f"{name}: status {status}" + (f": {reason}" if reason else ""))


def _reason(body: bytes) -> str:
    """What a refusal says, in the forms that servers have for it."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, dict):
            found = found.get("error", found.get("message", found.get("detail")))
        if isinstance(found, dict):
            found = found.get("message")
        if isinstance(found, str):
            return "".join(letter if letter.isprintable() else " " for letter in found[:REASON_LETTERS])
    return ""
