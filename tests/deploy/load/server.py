"""A small HTTP server in a thread of its own, which does with each request what a test wants, and keeps a log."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

Behave: TypeAlias = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """What came: number from 0, first line, head and body; `connection` counts them from 0."""

    number: int
    line: str
    head: str
    body: bytes
    connection: int


@dataclass
class Server:
    """Where it listens, and what it did: seconds that each request took from being read to being answered."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    connections: int = 0


def reply(body: bytes = b"ok", status: str = "200 OK", *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]).encode() + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def answering(data: bytes) -> Behave:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return behave


@contextmanager
def serve(behave: Behave, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server until the block ends; a behaviour that closes its writer ends the connection."""
    found, ready = Server(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = found.connections
        found.connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while not writer.is_closing():
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    length = next((line[15:] for line in head.split("\r\n") if line.startswith("Content-Length:")), "0")
                    body = await reader.readexactly(int(length))
                    began = time.perf_counter()
                    request = Request(len(found.requests), head.split("\r\n")[0], head, body, number)
                    found.requests.append(request)
                    await behave(request, writer)
                    await writer.drain()
                    found.took.append(time.perf_counter() - began)
        finally:
            writer.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        found.url = f"{'https' if context else 'http'}://127.0.0.1:{port}"
        ready.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)

    def work() -> None:
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
