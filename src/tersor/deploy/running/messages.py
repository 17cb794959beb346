"""What a gateway and an engine's process say to one another, over one socket, many requests at once.

A message is a head of two lengths, a JSON object and bytes. From the gateway: {"id", "operation", …}; operations are
"run" (of the engine), "cancel" and "ping". From the engine: parts of an answer {"id", "part"}, of which the last may
say "done" too, or else one {"id", "done"} or {"id", "error", "status"}; the first message of all is {"ready"} or
{"error"}.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

__all__ = ["HEAD", "MAX_JSON", "MAX_PAYLOAD", "Closed", "Message", "Part", "Unpacker", "is_last", "packed"]

Message: TypeAlias = "tuple[dict[str, Any], bytes]"
Part: TypeAlias = "dict[str, Any] | str"
"""Of an answer: an object, or the JSON text of one, which is then handed on as it is."""
HEAD = struct.Struct("<II")
MAX_JSON = 64 << 20
MAX_PAYLOAD = 1 << 30


class Closed(Exception):  # noqa: N818 (an end, and no error)
    """The other side has gone, or speaks something else."""


def packed(message: dict[str, Any], payload: bytes = b"", part: str = "") -> bytes:
    """Return a message as it is sent; `part` is JSON that becomes its "part".

    >>> packed({"id": 1}, part='{"a": 2}')[HEAD.size:]
    b'{"id":1,"part":{"a": 2}}'
    """
    text = json.dumps(message, separators=(",", ":")).encode()
    if part:
        text = text[:-1] + b',"part":' + part.encode() + b"}"
    return HEAD.pack(len(text), len(payload)) + text + payload


def is_last(message: dict[str, Any]) -> bool:
    """Whether nothing more will come of the request that it answers."""
    return "done" in message or "error" in message


class Unpacker:
    """Cuts what a socket gives into messages: many of one piece, one of many pieces.

    >>> unpacker, data = Unpacker(), packed({"id": 1}, b"ab") + packed({"id": 2})
    >>> list(unpacker.feed(data[:-1])), list(unpacker.feed(data[-1:]))
    ([({'id': 1}, b'ab')], [({'id': 2}, b'')])
    """

    __slots__ = ("_rest", "_wanted")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = HEAD.size

    def feed(self, piece: bytes) -> Iterator[Message]:
        """Yield the messages that `piece` completes; Closed for what is none, ValueError for what is no JSON."""
        data: bytes | bytearray = piece
        if self._rest:
            self._rest += piece
            if len(self._rest) < self._wanted:
                return
            data = self._rest
        at, wanted, view = 0, HEAD.size, memoryview(data)
        while len(data) - at >= HEAD.size:
            json_size, payload_size = HEAD.unpack_from(data, at)
            if json_size > MAX_JSON or payload_size > MAX_PAYLOAD:
                raise Closed
            middle = at + HEAD.size + json_size
            if middle + payload_size > len(data):
                wanted = middle + payload_size - at
                break
            message = json.loads(bytes(view[at + HEAD.size : middle]))
            if not isinstance(message, dict):
                raise Closed
            at = middle + payload_size
            yield message, bytes(view[middle:at])
        self._rest, self._wanted = bytearray(view[at:]), wanted
