"""One exchange of HTTP/1.1 on a connection that may be kept: small, bounded, and trusting nothing that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from tersor.core.errors import SchemeError

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_HEADER_BYTES",
    "Address",
    "ExchangeError",
    "Head",
    "Kind",
    "exchange",
    "request_bytes",
]

Kind: TypeAlias = Literal[
    "connect", "tls", "timeout", "reset", "closed early", "not HTTP", "too large", "wrong body", "stream", "not sent"
]
"""What became of a request that got no answer, or none that can be read; "not sent" is the fault of the generator."""
Take: TypeAlias = Callable[[bytes], None]
"""Is given each piece of a body as it arrives; may raise ExchangeError."""
Head: TypeAlias = Callable[[int, Mapping[bytes, bytes]], Take]
"""Is told status and fields (names in small letters) before the body, and returns what takes that."""

MAX_HEADER_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20
MAX_INTERIM = 8
"""Answers "100 Continue" and the like before the true one."""
MAX_CHUNK_LINE = 1024
PIECE = 64 << 10


class ExchangeError(Exception):
    """An exchange that failed; it is counted by `kind` and ends nothing but its connection."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    host  without the brackets of an IPv6 address
    path  of the address, "" or from "/" on
    query of the address, with its "?", or ""
    """

    is_secure: bool
    host: str
    port: int
    path: str
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read an http or https address; SchemeError for any other text.

        >>> Address.parse("http://[::1]:8000/v1/")
        Address(is_secure=False, host='::1', port=8000, path='/v1/', query='')
        """
        if not url.isascii() or not url.isprintable() or " " in url:
            raise SchemeError(f"{url!r}: an address has only printable ASCII letters and no spaces; escape the others")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SchemeError(f"{url!r} is not an address: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SchemeError(
                f"{url!r}: an address begins with http:// or https:// and a host, as http://localhost:8000"
            )
        if "@" in parts.netloc:
            raise SchemeError("an address with a user and password would stand in reports: send them in a header")
        is_secure = parts.scheme == "https"
        query = f"?{parts.query}" if parts.query else ""
        return cls(is_secure, parts.hostname, port or (443 if is_secure else 80), parts.path, query)

    @property
    def whole(self) -> str:
        """Path and query as they were given, at least "/"."""
        return (self.path or "/") + self.query

    def below(self, path: str, interface: str = "") -> str:
        """Return `path` behind that of the address, with `interface` between them, once.

        >>> Address.parse("http://h/a/v1").below("/models", "/v1"), Address.parse("http://h/a/").below("/models", "/v1")
        ('/a/v1/models', '/a/v1/models')
        """
        return self.path.rstrip("/").removesuffix(interface) + interface + path

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them; the usual port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"


def request_bytes(address: Address, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> bytes:
    """Return a whole request as it goes over the wire: a POST of `body`, or a GET where that is None.

    path     from "/" on, as it is
    headers  added to what HTTP needs
    Raises SchemeError for a path or header that would break the request.
    """
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise SchemeError(f"a path begins with / and has only printable ASCII letters and no spaces, got {path!r}")
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {address.authority}"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    for name, value in headers.items():
        if not name or not all(letter.isalnum() or letter in "-_" for letter in name) or not name.isascii():
            raise SchemeError(f"{name!r} is not the name of a header")
        if not value.isascii() or not value.isprintable():
            raise SchemeError(f"the value of header {name} has letters that no header can hold")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: bytes, take: Take, head: Head | None = None
) -> tuple[int, bool]:
    """Send `wire` and read the answer; return its status, and whether the connection can be used again.

    take    gets the body of a 2xx answer, piece by piece; other bodies are read and dropped
    head    chooses instead what takes the body, whatever the status
    reader  with a limit of MAX_HEADER_BYTES, which bounds what it holds
    Raises ExchangeError for an answer that is broken, cut or too large, OSError where the connection breaks. Knows no
    time: whoever calls bounds it.
    """
    writer.write(wire)
    await writer.drain()
    try:
        status, is_kept, fields = await _head(reader)
        if head is not None:
            take = head(status, fields)
        if status in (204, 304):
            return status, is_kept
        if head is None and status // 100 != 2:
            take = _drop
        if "chunked" in fields.get(b"transfer-encoding", b"").decode("latin-1"):
            await _chunks(reader, take)
            return status, is_kept
        length = fields.get(b"content-length")
        if length is None:
            await _until_end(reader, take)
            return status, False
        await _pieces(reader, take, _length(length))
    except asyncio.IncompleteReadError as error:
        raise ExchangeError("closed early", "the server closed the connection inside of an answer") from error
    except asyncio.LimitOverrunError as error:
        raise ExchangeError("too large", f"a header or line of more than {MAX_HEADER_BYTES} bytes") from error
    return status, is_kept


def _drop(piece: bytes) -> None:
    """Take a body that nobody reads."""


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool, dict[bytes, bytes]]:
    """Status, whether the connection stays open, and the fields by their names in small letters."""
    for _ in range(MAX_INTERIM):
        # The first bytes alone, so that what is no HTTP is told at once and not after the time is up.
        if await reader.readexactly(5) != b"HTTP/":
            raise ExchangeError("not HTTP", "the answer does not begin with HTTP/")
        first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        code = rest[:3]
        if version not in (b"1.0", b"1.1") or not code.isdigit() or not 100 <= int(code) <= 599 or rest[3:4].strip():
            raise ExchangeError("not HTTP", f"{first[:40]!r} is no status of HTTP/1.1")
        fields = _fields(lines)
        if int(code) < 200:
            continue
        options = fields.get(b"connection", b"").lower()
        is_kept = b"close" not in options if version == b"1.1" else b"keep-alive" in options
        return int(code), is_kept, fields
    raise ExchangeError("not HTTP", f"more than {MAX_INTERIM} answers that announce another")


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip() != name:
            raise ExchangeError("not HTTP", f"{line[:40]!r} is no header")
        key, value = name.lower(), value.strip()
        if key == b"transfer-encoding":
            value = value.lower()
        if key == b"content-length" and found.get(key, value) != value:
            raise ExchangeError("not HTTP", "two headers Content-Length that differ")
        found[key] = value
    return found


def _length(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ExchangeError("not HTTP", f"Content-Length {text[:40]!r} is no length")
    length = int(text)
    if length > MAX_BODY_BYTES:
        raise ExchangeError("too large", f"a body of {length} bytes, more than {MAX_BODY_BYTES}")
    return length


async def _chunks(reader: asyncio.StreamReader, take: Take) -> None:
    left = MAX_BODY_BYTES
    while True:
        line = await reader.readuntil(b"\r\n")
        digits = line[:-2].partition(b";")[0].strip()
        if len(line) > MAX_CHUNK_LINE or not 0 < len(digits) <= 16 or digits.strip(b"0123456789abcdefABCDEF"):
            raise ExchangeError("not HTTP", f"{line[:40]!r} is no length of a chunk")
        length = int(digits, 16)
        if not length:
            break
        left -= length
        if left < 0:
            raise ExchangeError("too large", f"a body of more than {MAX_BODY_BYTES} bytes")
        await _pieces(reader, take, length)
        if await reader.readexactly(2) != b"\r\n":
            raise ExchangeError("not HTTP", "a chunk is longer than it says")
    for _ in range(MAX_HEADER_BYTES // MAX_CHUNK_LINE):  # fields may follow the last chunk
        if await reader.readuntil(b"\r\n") == b"\r\n":
            return
    raise ExchangeError("too large", "the fields behind a body do not end")


async def _pieces(reader: asyncio.StreamReader, take: Take, length: int) -> None:
    """Hand over `length` bytes as they come, so that the time of each event in a stream is that of its arrival."""
    while length:
        piece = await reader.read(min(length, PIECE))
        if not piece:
            raise ExchangeError("closed early", f"the server closed the connection, {length} bytes before the end")
        length -= len(piece)
        take(piece)


async def _until_end(reader: asyncio.StreamReader, take: Take) -> None:
    left = MAX_BODY_BYTES
    while piece := await reader.read(PIECE):
        left -= len(piece)
        if left < 0:
            raise ExchangeError("too large", f"a body of more than {MAX_BODY_BYTES} bytes")
        take(piece)
