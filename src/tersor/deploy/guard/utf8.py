"""Counts the places of a reply that are no UTF-8, over pieces that may split a character."""

from __future__ import annotations

import codecs

__all__ = ["Utf8Check"]

REPLACEMENT = "\ufffd"


class Utf8Check:
    """An incremental decoder that counts instead of failing; it holds three bytes at most.

    A piece that is text was decoded by the engine: there every U+FFFD (what decoders put for bytes that are none) and
    every lone surrogate is a place, even where the model quotes U+FFFD on purpose. In bytes it is a character.

    >>> check = Utf8Check()
    >>> check.add("ä".encode()[:1]), check.add("ä".encode()[1:]), check.add(bytes([0xFF, 0xC3])), check.end()
    (0, 0, 1, 2)
    """

    __slots__ = ("_invalid", "_pending")

    def __init__(self) -> None:
        self._pending = b""
        self._invalid = 0

    def add(self, piece: bytes | str) -> int:
        """Take the next piece and return how many places were invalid so far."""
        if not self._pending and piece.isascii():  # nearly always
            return self._invalid
        if isinstance(piece, bytes):
            self._decode(piece, is_end=False)
        elif piece:
            self._decode(b"", is_end=True)  # text after half a character: it will never be whole
            if not piece.isascii():
                self._invalid += sum(letter == REPLACEMENT or "\ud800" <= letter <= "\udfff" for letter in piece)
        return self._invalid

    def end(self) -> int:
        """Take the end of the reply, where half a character is invalid, and return the count."""
        self._decode(b"", is_end=True)
        return self._invalid

    def _decode(self, piece: bytes, *, is_end: bool) -> None:
        rest = memoryview(self._pending + piece)
        while True:
            try:
                _, used = codecs.utf_8_decode(rest, "strict", is_end)
            except UnicodeDecodeError as error:
                self._invalid += 1
                rest = rest[error.end :]
            else:
                self._pending = bytes(rest[used:])
                return
