"""Bodies: of requests, read within bounds of size and time, unpacked within the same, parsed; of responses in JSON.

Errors are told as the protocol that was asked tells them.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tersor.deploy.gateway.heads import header
from tersor.deploy.running.supervised import RequestError
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    from starlette import responses
    from starlette.requests import Request
else:
    responses = LazyModule("starlette.responses", "serve")

__all__ = ["as_error", "as_json", "json_of", "read_body"]

BAD_REQUEST, TIMEOUT, TOO_LARGE = 400, 408, 413
KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""Status → what OpenAI's protocol calls it; others are an invalid_request_error."""


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """Return the whole body, unpacked; RequestError where it has more than `most` bytes or takes longer."""
    pieces, size = list[bytes](), 0
    too_large = f"a request may have {most} bytes"
    declared = header(request, "content-length", "0")
    if declared.isdigit() and int(declared) > most:
        raise RequestError(too_large, TOO_LARGE)
    try:
        async with asyncio.timeout(seconds):
            is_whole = False
            while not is_whole:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise RequestError("the client left before the body was whole", BAD_REQUEST)
                piece = message.get("body", b"")
                size += len(piece)
                if size > most:
                    raise RequestError(too_large, TOO_LARGE)
                pieces.append(piece)
                is_whole = not message.get("more_body", False)
    except TimeoutError:
        raise RequestError(f"the body did not arrive in {seconds:g} s", TIMEOUT) from None
    return _unpacked(b"".join(pieces), header(request, "content-encoding"), too_large, most)


def json_of(body: bytes) -> object:
    """Return what a body of JSON says; RequestError where it is none.

    >>> json_of(b'{"a": [1]}')
    {'a': [1]}
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {str(error)[:200]}", BAD_REQUEST) from error


def as_json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> responses.Response:
    """Return a response that says `content` in JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return responses.Response(text, status, headers, "application/json")


def _unpacked(body: bytes, encoding: str, too_large: str, most: int) -> bytes:
    """Undo gzip or deflate, to no more than the largest body."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "deflate"):
        raise RequestError(f"Content-Encoding {name[:40]!r}: gzip, deflate or none is wanted", BAD_REQUEST)
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        made = unpacker.decompress(body, most)
    except zlib.error as error:
        raise RequestError(f"the body is no {name}: {error}", BAD_REQUEST) from error
    if unpacker.unconsumed_tail:
        raise RequestError(too_large, TOO_LARGE)
    if not unpacker.eof:
        raise RequestError(f"the body is no {name}: it breaks off", BAD_REQUEST)
    return made


def as_error(
    request: Request, status: int, reason: str, headers: Mapping[str, str] | None = None
) -> responses.Response:
    """Return what is told of an error, in the form of the protocol of the request's path."""
    if request.scope["path"].startswith("/v2"):
        return as_json({"error": reason}, status, headers)
    kind = KINDS.get(status, "invalid_request_error")
    told = {"error": {"message": reason, "type": kind, "param": None, "code": None}}
    return as_json(told, status, headers)
