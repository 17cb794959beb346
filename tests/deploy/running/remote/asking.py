"""Servers that misbehave, and a remote engine that asks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from tersor.core.errors import EngineError
from tersor.deploy.running.remote.remote import Remote
from tersor.deploy.running.supervised import Patience, RequestError

from ...load.server import Behave, Request, reply, serve

T = TypeVar("T")
QUICK = Patience(probe=0.05, backoff=0.02, longest=0.1)
ASKED = {"operation": "completions", "body": {"prompt": "a", "max_tokens": 3}}
STREAMED = {"operation": "completions", "body": {"prompt": "a", "stream": True}}
MODELS = json.dumps({"data": [{"id": "there"}]}).encode()
SAID = json.dumps({"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}).encode()
CHUNK = b'data: {"choices": [{"index": 0, "text": "b"}]}\n\n'
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def played(scene: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await scene()

    return asyncio.run(bounded())


def remote(url: str, kind: str = "openai", **options: Any) -> Remote:
    given = {"url": url, "model": "there", "key_env": "", "connect_s": 2.0, "answer_s": 0.5, **options}
    return Remote("far", kind, given, QUICK)


def behaving(data: bytes | Behave, models: bytes | None = None) -> Behave:
    """A server whose list of models is right, and whose answers are `data`."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith("GET /v1/models "):
            writer.write(reply(MODELS) if models is None else models)
        elif isinstance(data, bytes):
            writer.write(data)
        else:
            await data(request, writer)

    return behave


async def parts(engine: Remote, request: dict[str, Any], payload: bytes = b"") -> list[Any]:
    async with aclosing(engine.run(request, payload)) as found:
        return [part async for part in found]


def outcome(
    behave: Behave, request: dict[str, Any], kind: str = "openai", payload: bytes = b"", answer_s: float = 10
) -> Any:
    """What becomes of one request: its parts, or the error."""

    async def scene() -> Any:
        with serve(behave) as server:
            async with remote(server.url, kind, answer_s=answer_s) as engine:
                try:
                    return await parts(engine, request, payload)
                except (EngineError, RequestError) as error:
                    return error

    return played(scene)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def closing(data: bytes) -> Behave:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return behave


async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def dripping(head: bytes, piece: bytes) -> Behave:
    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await asyncio.sleep(0.02)

    return behave
