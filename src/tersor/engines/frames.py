"""What parent and child say to one another: frames of a 4-byte little-endian length, then that much JSON.

A reply frame with the key "floats" is followed by that many raw little-endian float32 values. Each request ends with
one frame that has "done" or "error".
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

__all__ = ["HEAD", "MAX_FRAME", "receive", "send"]

HEAD = struct.Struct("<I")
MAX_FRAME = 1 << 30


def send(output: BinaryIO, message: dict[str, Any]) -> None:
    """Write one frame; the caller flushes."""
    data = json.dumps(message).encode()
    output.write(HEAD.pack(len(data)) + data)


def receive(source: BinaryIO) -> dict[str, Any] | None:
    """Read one frame; None where the other side has closed."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (size,) = HEAD.unpack(head)
    message: dict[str, Any] = json.loads(source.read(size))
    return message
