"""From documents to token sequences of one length, the same for the same seed."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.calibrate.spread import spread
from tersor.calibrate.text import Corpus, Document
from tersor.core.errors import MissingError, SchemeError

__all__ = ["LEAST_SEQUENCES", "Encoder", "Sequences", "TokenIds", "pack", "without_shared"]

TokenIds: TypeAlias = npt.NDArray[np.int64]
"""[sequences, length]"""

LEAST_SEQUENCES = 8
"""Fewer say too little about a model to quantize by."""
SHARED = 32
"""Tokens in a row that two texts do not have in common by chance."""
CHARACTERS = 4
"""Of a token, about."""


class Encoder(Protocol):
    """What turns text into ids."""

    begin: int | None
    """The id that opens every sequence, None where the model wants none."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of `text`, without special ones."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Sequence[int]:
        """Return the ids of a conversation in the model's own template; MissingError where it has none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Token ids, int64 [sequences, length], with what the Card says of them."""

    ids: TokenIds
    corpus: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.ids.size)


def pack(
    corpus: Corpus,
    encoder: Encoder,
    *,
    count: int,
    length: int,
    seed: int = 0,
    shortest: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sequences:
    """Concatenate the documents and cut `count` sequences of `length` tokens, spread evenly over all of the text.

    Of much more text than that an even share of the documents is read. They come in an order that `seed` shuffles; 0
    keeps theirs. Every sequence opens with the model's own beginning, if it has one. Where the text has fewer, all are
    taken and a note says so; below LEAST_SEQUENCES (or `count`, if that is less) MissingError says how much text is
    missing; with `shortest` sequences are cut shorter before that, to so many tokens at the least, and a note says so.
    """
    if count < 1 or length < 8:
        raise SchemeError(f"calibration needs at least 1 sequence of 8 tokens, got {count} of {length}")
    order = list(corpus.documents)
    if seed:
        random.Random(seed).shuffle(order)  # noqa: S311 (a choice of text, not a secret)
    head = [encoder.begin] if encoder.begin is not None else []
    step = length - len(head)
    enough = 4 * count * step  # tokens; more only cost time
    stream = array("q")
    for document in spread(order, CHARACTERS * enough, CHARACTERS * 2 * step):
        stream.extend(_ids(document, encoder))
        if progress is not None:
            progress(len(stream))
    there, least, asked = len(stream) // step, min(LEAST_SEQUENCES, count), length
    if shortest is not None and there < least and len(stream) // least + len(head) >= shortest:
        step = len(stream) // least
        there, length = len(stream) // step, step + len(head)
    if there < least:
        raise MissingError(
            f"{corpus.name} has {len(stream):,} tokens, {there} sequences of {length}; at least {least} are "
            "needed: give more text or shorter sequences"
        )
    taken = min(count, there)
    starts = np.linspace(0, there - 1, taken).round().astype(np.int64) if taken > 1 else np.zeros(1, np.int64)
    rows = [[*head, *stream[start * step : (start + 1) * step]] for start in starts.tolist()]
    wanted = f"{count}" if length == asked else f"{count} of {asked}"
    notes = () if taken == count else (f"{corpus.name} has only {taken} sequences of {length} tokens, not {wanted}",)
    return Sequences(np.array(rows, dtype=np.int64), corpus.name, corpus.sha256, notes)


def _ids(document: Document, encoder: Encoder) -> Sequence[int]:
    return encoder.encode_chat(document.messages) if document.messages else encoder.encode(document.text)


def without_shared(ids: TokenIds, unseen: TokenIds) -> TokenIds:
    """Return the sequences of `ids` that have no SHARED tokens in a row that a sequence of `unseen` has too.

    Where sequences are shorter, all of their tokens count as a row.
    """
    width = min(SHARED, ids.shape[1], unseen.shape[1])
    factors = np.random.default_rng(SHARED).integers(1, 1 << 63, width, dtype=np.uint64) | np.uint64(1)

    def hashes(rows: TokenIds) -> npt.NDArray[np.uint64]:
        runs = np.lib.stride_tricks.sliding_window_view(rows.astype(np.uint64), width, axis=1)
        return sum((runs[..., k] * factors[k] for k in range(width)), np.zeros(runs.shape[:2], np.uint64))

    known = np.unique(hashes(unseen))
    return ids[~np.isin(hashes(ids), known).any(axis=1)]
