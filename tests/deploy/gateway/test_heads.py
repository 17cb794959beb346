"""What is between uvicorn's protocol and the socket: answers in one piece, headers found at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tersor.deploy.gateway.heads import Gathering, header

starlette = pytest.importorskip("starlette", reason="needs starlette: pip install 'tersor[serve]'")


async def _ends() -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter, asyncio.Server]:
    """Return the transport of a server's connection, and the client's side of it."""
    made: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def taken(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.set_result(writer)

    server = await asyncio.start_server(taken, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    return (await made).transport, reader, writer, server


def test_what_is_written_in_one_turn_is_sent_as_one_piece() -> None:
    async def run() -> tuple[list[bytes], bytes]:
        transport, reader, writer, server = await _ends()
        sent: list[bytes] = []

        class Seen:
            def write(self, data: bytes) -> None:
                sent.append(data)
                transport.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

        seen: Any = Seen()
        gathering = Gathering(seen, asyncio.get_running_loop())
        gathering.write(b"head ")
        gathering.write(b"body ")
        await asyncio.sleep(0)
        gathering.write(b"more ")
        await asyncio.sleep(0)
        gathering.write(b"last")
        gathering.close()
        whole = await reader.read()
        gathering.write(b"too late")  # nobody hears it, and nothing fails
        await asyncio.sleep(0)
        writer.close()
        server.close()
        return sent, whole

    assert asyncio.run(run()) == ([b"head body ", b"more ", b"last"], b"head body more last")


def test_the_first_of_two_headers_counts_and_is_found_again() -> None:
    from starlette.requests import Request  # noqa: PLC0415 (only where it is installed)

    heads = [(b"x-a", b"one"), (b"x-b", "caf\u00e9".encode("latin-1")), (b"x-a", b"two")]
    request = Request({"type": "http", "headers": heads})
    assert [header(request, "x-a"), header(request, "x-b"), header(request, "x-c", "none")] == [
        "one",
        "caf\u00e9",
        "none",
    ]
    assert header(request, "x-a") == request.headers.get("x-a")
