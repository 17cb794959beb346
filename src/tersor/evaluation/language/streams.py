"""Logits as a stream of small slices, in the order of the windows: what keeps memory apart from tokens × vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import UnsupportedError
from tersor.evaluation.language.windows import Int32Array, Tokenizing, Window

__all__ = [
    "SLICE_BYTES",
    "Scorer",
    "Subject",
    "logits_of",
    "pairs_of_batches",
    "parts",
    "rows_at_once",
    "shared_vocabulary",
]

SLICE_BYTES = 32 << 20
"""Logits of one slice of one model; a handful of slices is all that is ever held."""
LARGEST_PADDING = 0.05
OTHER_BATCH = 24
"""Tokens decoded at once where the noise floor is measured: no divisor of the usual sizes."""


class Scorer(Protocol):
    """What computes logits: `engines.llama_cpp.LlamaCpp` or `engines.transformers_lm.TransformersLm`."""

    vocabulary_size: int

    def slices(self, ids: Sequence[int], *, start: int = 0, rows: int = 512, batch: int = 0) -> Iterator[Float32]:
        """Yield logits after ids[start], ids[start + 1], …, `rows` of them at a time; `batch` changes rounding only."""
        ...

    def version(self) -> str:
        """Name and release of the engine."""
        ...


class Subject(Scorer, Tokenizing, Protocol):
    """An artefact that is evaluated: `engines.llama_cpp.LlamaCpp` or `engines.transformers_text.TransformersText`."""

    path: Path

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""
        ...


def shared_vocabulary(reference: int, subject: int) -> int:
    """How many logits both have, from the sizes of two vocabularies: checkpoints pad theirs with rows of no token.

    Raises UnsupportedError where the sizes are too far apart for padding.

    >>> shared_vocabulary(32064, 32000)
    32000
    """
    small, large = sorted((reference, subject))
    if large > small * (1 + LARGEST_PADDING) + 64:
        raise UnsupportedError(
            f"the reference has a vocabulary of {reference} tokens, the artefact of {subject}: other models"
        )
    return small


def rows_at_once(vocabulary: int) -> int:
    """Rows of logits in a slice of SLICE_BYTES."""
    return max(1, SLICE_BYTES // (4 * vocabulary))


def parts(windows: Sequence[Window], rows: int) -> Iterator[tuple[Window, int, Int32Array]]:
    """Yield window, place of the first target within it, and targets of each slice of a stream."""
    for window in windows:
        for start in range(0, len(window.targets), rows):
            yield window, start, window.targets[start : start + rows]


def logits_of(scorer: Scorer, windows: Sequence[Window], vocabulary: int) -> Iterator[Float32]:
    """Yield the logits of the targets of all windows, slice by slice: [at most rows_at_once, vocabulary]."""
    rows = rows_at_once(vocabulary)
    for window in windows:
        for values in scorer.slices(window.ids.tolist(), start=window.first, rows=rows):
            yield values[:, :vocabulary]


def pairs_of_batches(
    scorer: Scorer, windows: Sequence[Window], vocabulary: int
) -> Iterator[tuple[Int32Array, Float32, Float32]]:
    """Yield targets and their logits twice, the second time computed in batches of another size: the noise floor.

    Only the first slice of each window is taken.
    """
    rows = rows_at_once(vocabulary)
    for window in windows:
        ids = window.ids[: window.first + rows].tolist()
        usual, other = (next(scorer.slices(ids, start=window.first, rows=rows, batch=b)) for b in (0, OTHER_BATCH))
        yield np.ascontiguousarray(window.targets[:rows]), usual[:, :vocabulary], other[:, :vocabulary]
