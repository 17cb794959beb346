"""What parent and child say to one another: frames of a 4-byte little-endian length, then that much JSON.

A reply frame with the key "floats" is followed by that many raw little-endian float32 values. Each request ends with
one frame that has "done" or "error".
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

__all__ = ["HEAD", "MAX_FRAME", "Ready", "own_output", "receive", "send", "serve"]

HEAD = struct.Struct("<I")
MAX_FRAME = 1 << 30

Ready: TypeAlias = "tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]"
"""What a child tells of what it has loaded, and what answers its requests."""


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


def own_output(buffering: int = -1) -> BinaryIO:
    """Return what frames are written to, once: from now on whatever else prints goes to stderr, out of their way."""
    output = os.fdopen(os.dup(1), "wb", buffering)
    os.dup2(2, 1)
    return output


def serve(
    load: Callable[[BinaryIO], Ready],
    *,
    refusal: Callable[[Exception], str] = str,
) -> None:
    """Load, tell of it, and answer requests until stdin closes: all that a child of one thread does.

    load     is given where floats go
    refusal  how the reason is told why nothing was loaded
    Whatever a foreign library raises goes to the parent: this is the edge of the process.
    """
    output = own_output()
    try:
        facts, answer = load(output)
        send(output, {"done": True, **facts})
    except Exception as error:
        send(output, {"error": f"{type(error).__name__}: {refusal(error)}"})
        output.flush()
        return
    output.flush()
    while (request := receive(sys.stdin.buffer)) is not None:
        try:
            send(output, {"done": True, **answer(request)})
        except Exception as error:
            send(output, {"error": f"{type(error).__name__}: {error}"})
        output.flush()
