"""Server-sent events as they arrive: pieces of any size in, what events say out."""

from __future__ import annotations

__all__ = ["Events"]


class Events:
    """Cuts a stream into its lines.

    >>> events = Events()
    >>> events.feed(b"data: on"), events.feed(b"e\\n: still here\\ndata: [DO")
    ([], [b'one', b''])
    >>> events.unfinished
    9
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def unfinished(self) -> int:
        """Bytes of the line that has not ended yet."""
        return len(self._rest)

    def feed(self, piece: bytes) -> list[bytes]:
        """Return what each line that ends in `piece` says, empty where it is no data, as comments are."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [bytes(line[5:].strip()) if line.startswith(b"data:") else b"" for line in lines]
