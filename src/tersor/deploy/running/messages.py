"""What a gateway and an engine's process say to one another, over one socket, many requests at once.

A message is a head of two lengths, a JSON object and bytes. From the gateway: {"id", "operation", …}; operations are
"run" (of the engine), "cancel" and "ping". From the engine: parts of an answer {"id", "part"}, then one {"id", "done"}
or {"id", "error", "status"}; the first message of all is {"ready"} or {"error"}.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

__all__ = ["HEAD", "MAX_JSON", "MAX_PAYLOAD", "Closed", "packed", "receive"]

HEAD = struct.Struct("<II")
MAX_JSON = 64 << 20
MAX_PAYLOAD = 1 << 30


class Closed(Exception):  # noqa: N818 (an end, and no error)
    """The other side has gone, or speaks something else."""


def packed(message: dict[str, Any], payload: bytes = b"") -> bytes:
    """Return a message as it is sent."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return HEAD.pack(len(text), len(payload)) + text + payload


def receive(source: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Read one message; Closed where there will be none."""
    sizes = HEAD.unpack(_exactly(source, HEAD.size))
    if sizes[0] > MAX_JSON or sizes[1] > MAX_PAYLOAD:
        raise Closed
    message = json.loads(_exactly(source, sizes[0]))
    if not isinstance(message, dict):
        raise Closed
    return message, bytes(_exactly(source, sizes[1]))


def _exactly(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = source.recv_into(view)
        if not count:
            raise Closed
        view = view[count:]
    return data
