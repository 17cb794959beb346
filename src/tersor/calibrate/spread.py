"""An even share of many documents, where there is more text than is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tersor.calibrate.text import Document

__all__ = ["spread"]


def spread(documents: Sequence[Document], most: int, piece: int) -> list[Document]:
    """Return about `most` characters, from the whole of the text: documents in their order, some left out, of long ones
    pieces of `piece` characters. What has no more, or is one document, stays as it is.

    >>> [one.text for one in spread([Document(letter * 10) for letter in "abcdef"], 20, 100)]
    ['bbbbbbbbbb', 'eeeeeeeeee']
    """
    whole = sum(document.characters for document in documents)
    if whole <= most or len(documents) == 1:
        return list(documents)
    share, due, taken = most / whole, 0.0, []
    for document in documents:
        due += document.characters * share
        if document.messages or document.characters <= piece:
            parts = [document] if due >= document.characters / 2 else []
        else:
            parts = [replace(document, text=text) for text in _pieces(document.text, int(due), piece)]
        taken += parts
        due -= sum(part.characters for part in parts)
    return taken


def _pieces(text: str, most: int, piece: int) -> Iterator[str]:
    """Yield pieces, evenly over the text, of `most` characters in all but for what is needed to begin with a word."""
    count = most // piece
    for number in range(count):
        start = (len(text) - piece) * (2 * number + 1) // (2 * count)
        begin = max(text.find(gap, start, start + piece // 2) for gap in ("\n", " "))
        yield text[max(begin, start) : start + piece]
