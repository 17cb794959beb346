"""From tokens to text that may leave: whole characters, and nothing that may be the beginning of a stop word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Held", "Pieces"]

UNKNOWN = "\ufffd"
MOST_HELD = 8
"""Tokens that may wait for the end of a character; more of them are no text."""
BEFORE = 6
"""Tokens of the prompt that the first ones are decoded with: some tokenizers drop a space where a text begins."""


class Pieces:
    """The text that each token adds.

    decode  tokens → text
    prompt  tokens before the first one
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-BEFORE:])
        self._begin, self._told = 0, len(self._ids)

    def add(self, token: int, *, is_last: bool = False) -> str:
        """Return what is new in the text; nothing while a character is not whole."""
        self._ids.append(token)
        before = self._decode(self._ids[self._begin : self._told])
        whole = self._decode(self._ids[self._begin :])
        waits = whole.endswith(UNKNOWN) and len(self._ids) - self._told < MOST_HELD
        if waits and not is_last:
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return whole[len(before) :]


class Held:
    """Text on its way out, with a record for each token of it.

    stops  words at which the text ends; they are not part of it
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._text = ""
        self._records: list[tuple[int, dict[str, Any]]] = []
        self.is_stopped = False

    def add(self, text: str, record: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """Take what a token adds; return the text that may leave, and the records of the tokens whole in it."""
        self._text += text
        self._records.append((len(self._text), record))
        found = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return self._released(min(found))
        return self._released(len(self._text) - max(map(self._begun, self._stops), default=0))

    def rest(self) -> tuple[str, list[dict[str, Any]]]:
        """Return what was held back, at the end of a text that met no stop word."""
        return self._released(len(self._text))

    def _begun(self, stop: str) -> int:
        """How many letters at the end may be the beginning of a stop word."""
        most = min(len(stop) - 1, len(self._text))
        return next((size for size in range(most, 0, -1) if self._text.endswith(stop[:size])), 0)

    def _released(self, count: int) -> tuple[str, list[dict[str, Any]]]:
        text, self._text = self._text[:count], self._text[count:]
        records = [record for end, record in self._records if end <= count]
        self._records = [(end - count, record) for end, record in self._records if end > count]
        return text, records
