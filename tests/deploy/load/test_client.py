"""Connections over real sockets: kept, bounded, and every failure named."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tersor.core.errors import EngineError, MissingError, SchemeError
from tersor.deploy.load.client import Client, tls_context
from tersor.deploy.load.exchange import Address, request_bytes
from tersor.deploy.load.generator import Answer, sender
from tersor.deploy.load.work import fixed_work

from .server import Behave, Request, answering, chunked, reply, serve


def answers(
    url: str, count: int = 1, *, connections: int = 4, timeout_s: float = 5.0, context: ssl.SSLContext | None = None
) -> list[Answer]:
    """What becomes of `count` requests at once."""

    async def run() -> list[Answer]:
        address = Address.parse(url)
        client = Client(address, connections, context)
        await client.find()
        send, deadline = sender(client, fixed_work(address, "/")), asyncio.get_running_loop().time() + timeout_s
        try:
            return list(await asyncio.gather(*(send(index, deadline) for index in range(count))))
        finally:
            await client.close()

    return asyncio.run(run())


async def _hang(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _drip(request: Request, writer: asyncio.StreamWriter) -> None:
    """A slow loris that answers: a letter now and then, without end."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(chunked(b"x"))
        await asyncio.sleep(0.02)


async def _drip_head(request: Request, writer: asyncio.StreamWriter) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000:
        writer.write(bytes([letter]))
        await asyncio.sleep(0.02)


async def _reset(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )  # lingers for no time: closes with a reset
    writer.transport.abort()


async def _close(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _close_inside(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(reply(b"x" * 100)[:60])
    writer.close()


@pytest.mark.parametrize(
    ("behave", "kinds"),
    [
        (_hang, {"timeout"}),
        (_drip, {"timeout"}),
        (_drip_head, {"timeout"}),
        (_reset, {"reset"}),
        (_close, {"closed early", "reset"}),
        (_close_inside, {"closed early", "reset"}),
        (answering(b"\x00\x01\x02garbage that is no HTTP\r\n\r\n"), {"not HTTP"}),
        (answering(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000), {"too large"}),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"), {"too large"}),
    ],
)
def test_whatever_a_server_does_has_a_name_and_an_end(behave: Behave, kinds: set[str]) -> None:
    began = time.perf_counter()
    with serve(behave) as server:
        found = answers(server.url, 3, timeout_s=0.5 if "timeout" in kinds else 100)
    assert {answer.error for answer in found} <= kinds
    assert len(found) == 3
    assert time.perf_counter() - began < 90


def test_nobody_listening_is_a_failure_to_connect() -> None:
    with serve(answering(reply())) as server:
        url = server.url
    assert [answer.error for answer in answers(url, 2)] == ["connect", "connect"]


def test_a_status_is_an_answer_and_no_failure() -> None:
    with serve(answering(reply(b"later", "503 Service Unavailable"))) as server:
        (answer,) = answers(server.url)
    assert (answer.status, answer.error, answer.is_good) == (503, "", False)


def test_connections_are_kept_and_bounded() -> None:
    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(reply())

    with serve(slowly) as server:
        found = answers(server.url, 12, connections=3)
    assert all(answer.is_good for answer in found)
    assert server.connections == 3
    assert sum(answer.waited for answer in found) == 9


def test_a_connection_that_was_closed_while_it_rested_is_not_used() -> None:
    async def last(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(reply())
        await writer.drain()
        writer.close()

    async def run(url: str) -> list[int]:
        address = Address.parse(url)
        client, found = Client(address, 2), []
        await client.find()
        for _ in range(3):
            found.append((await client.get(request_bytes(address, "/"), 5))[0])
            await asyncio.sleep(0.2)  # the farewell arrives
        await client.close()
        return found

    with serve(last) as server:
        assert asyncio.run(run(server.url)) == [200, 200, 200]
    assert server.connections == 3


def test_no_free_connection_in_time_is_the_fault_of_the_generator() -> None:
    with serve(_hang) as server:
        found = answers(server.url, 3, connections=1, timeout_s=0.3)
    assert sorted(answer.error for answer in found) == ["not sent", "not sent", "timeout"]


def test_an_unknown_host_ends_the_run() -> None:
    for host in ("nowhere.invalid", "a..b"):
        with pytest.raises(EngineError, match="no such host can be found"):
            answers(f"http://{host}/")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_https_checks_the_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(answering(reply()), context) as server:
        trusting = answers(server.url, 2, context=tls_context(certificate))
        (doubting,) = answers(server.url, context=tls_context())
    assert [answer.status for answer in trusting] == [200, 200]
    assert doubting.error == "tls"
    with pytest.raises(SchemeError, match="not a file of certificates"):
        tls_context(_written(tmp_path / "no.pem", "nothing"))
    with pytest.raises(MissingError, match="no such file with certificates"):
        tls_context(tmp_path / "absent.pem")


def test_tls_to_a_server_without_it_is_an_error_of_tls() -> None:
    with serve(answering(reply())) as server:
        (answer,) = answers(server.url.replace("http:", "https:"), context=tls_context(), timeout_s=2)
    assert answer.error in ("tls", "timeout", "connect")


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
