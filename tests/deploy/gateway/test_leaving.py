"""Clients that leave without a stream, or take nothing of one, hold no place for long."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tersor.deploy.gateway.heads import bounded_protocol
from tersor.deploy.gateway.leaving import stream

from .conftest import YAML, Live, live
from .test_faults import BODY, asked, engine_of, metric, until

ROW = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
ASKED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text": ("demo", "/v1/completions", BODY),
    "stream": ("demo", "/v1/completions", {**BODY, "stream": True}),
    "net": ("twice", "/v2/models/twice/infer", ROW),
}


def sent(gateway: Live, path: str, body: object, *, name: str = "") -> socket.socket:
    """A connection on which a request was sent, of which nothing was read."""
    host, _, port = gateway.address.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    named = f"Idempotency-Key: {name}\r\n" if name else ""
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{named}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


def leave(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("kind", ASKED)
def test_a_client_that_leaves_before_its_answer_frees_its_place(deployed: Callable[[str], Path], kind: str) -> None:
    model, path, body = ASKED[kind]
    in_flight = f'tersor_in_flight_requests{{model="{model}"}}'
    with live(deployed(YAML)) as gateway:
        assert asked(gateway.address, path, body)[0] == 200
        for victim in (victims := gateway.children()):
            os.kill(victim, signal.SIGSTOP)  # they would hold the request until the deadline, 20 s
        client = sent(gateway, path, body)
        until(lambda: metric(gateway.address, in_flight) == 1)
        leave(client)
        until(lambda: metric(gateway.address, in_flight) == 0, 3)
        for victim in victims:
            os.kill(victim, signal.SIGCONT)
        assert asked(gateway.address, path, body)[0] == 200


def test_what_may_be_asked_for_again_is_answered_to_its_end(deployed: Callable[[str], Path]) -> None:
    body = {**BODY, "temperature": 1}
    with live(deployed(YAML)) as gateway:
        os.kill(victim := engine_of(gateway, "small.gguf"), signal.SIGSTOP)
        client = sent(gateway, "/v1/completions", body, name="one")
        until(lambda: metric(gateway.address, "tersor_in_flight_requests") == 1)
        leave(client)
        with pytest.raises(AssertionError, match="it never came about"):
            until(lambda: metric(gateway.address, "tersor_in_flight_requests") == 0, 1)
        os.kill(victim, signal.SIGCONT)
        again = [asked(gateway.address, "/v1/completions", body, headers={"Idempotency-Key": "one"}) for _ in range(2)]
        assert again[0][:2] == again[1][:2]
        assert metric(gateway.address, "tersor_requests_total") == 1


def test_a_stream_that_nobody_takes_is_cut_and_closed() -> None:
    closed: list[bool] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(1 << 20)
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await stream(events(), 0.2, {})(scope, receive, send)

    async def scene() -> None:
        config = uvicorn.Config(endless, http=bounded_protocol(5), log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            while not closed:
                await asyncio.sleep(0.01)
            while server.server_state.connections:
                await asyncio.sleep(0.01)
        writer.close()
        server.should_exit = True
        await serving

    asyncio.run(scene())
    assert closed == [True]
