"""Answers that are right, and every way in which one can be wrong; no sockets."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.core.errors import SchemeError
from tersor.deploy.load.exchange import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    Address,
    ExchangeError,
    exchange,
    request_bytes,
)

from .server import chunked, reply


class Writer:
    def write(self, data: bytes) -> None:
        self.data = data

    async def drain(self) -> None:
        pass


def answered(*pieces: bytes) -> tuple[int, bool, bytes]:
    """Status, whether the connection is kept, and body of an answer that arrives in pieces and then ends."""

    async def run() -> tuple[int, bool, bytes]:
        reader, body = asyncio.StreamReader(limit=MAX_HEADER_BYTES), bytearray()
        task = asyncio.create_task(exchange(reader, cast("Any", Writer()), b"x", body.extend))
        for piece in pieces:
            reader.feed_data(piece)
            await asyncio.sleep(0)
        reader.feed_eof()
        return (*await task, bytes(body))

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(b"hello"), (200, True, b"hello")),
        (reply(b""), (200, True, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, True, b"")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + reply(b"a"), (200, True, b"a")),
        (reply(b"a", "200 OK", "Connection: close"), (200, False, b"a")),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", (200, False, b"a")),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\na", (200, True, b"a")),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, False, b"until the end")),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, True, b"")),
        (reply(b"busy", "503 Service Unavailable"), (503, True, b"")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"one ", b"two") + b"0\r\nX: y\r\n\r\n",
            (200, True, b"one two"),
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3;name=value\r\nabc\r\n0\r\n\r\n",
            (200, True, b"abc"),
        ),
    ],
)
def test_answers_are_read_whole(answer: bytes, expected: tuple[int, bool, bytes]) -> None:
    assert answered(answer) == expected
    assert answered(*(answer[i : i + 1] for i in range(len(answer)))) == expected


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "closed early"),
        (b"HTT", "closed early"),
        (HEAD, "closed early"),
        (HEAD + b"Content-Length: 5\r\n\r\nabc", "closed early"),
        (CHUNKED + b"5\r\nabc", "closed early"),
        (CHUNKED + chunked(b"abc"), "closed early"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"\x16\x03\x01\x02\x00garbage", "not HTTP"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 999 OK\r\n\r\n", "not HTTP"),
        (HEAD + b"no colon\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: 1e3\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na", "not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "not HTTP"),
        (CHUNKED + b"xyz\r\n", "not HTTP"),
        (CHUNKED + b"\r\n", "not HTTP"),
        (CHUNKED + b"3\r\nabcdef\r\n", "not HTTP"),
        (HEAD + b"X: " + b"a" * (MAX_HEADER_BYTES + 1), "too large"),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", "too large"),
        (CHUNKED + b"ffffffffff\r\n", "too large"),
        (CHUNKED + b"0\r\n" + b"X: y\r\n" * 1000, "too large"),
    ],
)
def test_every_broken_answer_has_a_name(answer: bytes, kind: str) -> None:
    with pytest.raises(ExchangeError) as caught:
        answered(answer)
    assert caught.value.kind == kind


def test_a_body_without_a_length_is_bounded() -> None:
    piece = b"x" * (1 << 20)
    with pytest.raises(ExchangeError, match="a body of more than") as caught:
        answered(HEAD + b"\r\n", *([piece] * (MAX_BODY_BYTES // len(piece) + 1)))
    assert caught.value.kind == "too large"


@given(data=st.binary(max_size=200), start=st.sampled_from((b"", HEAD, CHUNKED, HEAD + b"Content-Length: 9\r\n\r\n")))
def test_no_bytes_raise_anything_else(data: bytes, start: bytes) -> None:
    try:
        status, _, _ = answered(start + data)
    except ExchangeError:
        return
    assert 200 <= status <= 599


def test_a_request_is_written_as_http_has_it() -> None:
    address = Address.parse("http://example.org:8000/a")
    assert request_bytes(address, "/a/b", b"{}", {"X-Y": "z"}) == (
        b"POST /a/b HTTP/1.1\r\nHost: example.org:8000\r\nContent-Length: 2\r\nX-Y: z\r\n\r\n{}"
    )
    assert request_bytes(Address.parse("https://[::1]/"), "/") == b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "headers"),
    [("a", {}), ("/a b", {}), ("/a\r\nX: y", {}), ("/", {"X\r\nY": "z"}), ("/", {"X": "a\r\nY: b"})],
)
def test_nothing_can_be_smuggled_into_a_request(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(SchemeError, match=r"a path begins with|is not the name of a header|no header can hold"):
        request_bytes(Address.parse("http://h"), path, headers=headers)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://h/a b",
        "http://h/\n",
        "http://u:p@h/",
        "http://[1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SchemeError, match="address"):
        Address.parse(url)


def test_an_address_is_taken_as_it_is() -> None:
    address = Address.parse("https://example.org/health/?deep=1")
    assert (address.whole, address.port, address.authority) == ("/health/?deep=1", 443, "example.org")
    assert Address.parse("http://h").whole == "/"
