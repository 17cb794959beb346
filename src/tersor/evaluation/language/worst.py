"""The tokens that suffered most: found while logits pass by, shown in their text afterwards."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.evaluation import Sample
from tersor.evaluation.language.windows import Int32Array
from tersor.kernels.logits import TopK

__all__ = ["Expectation", "Worst", "WorstTokens", "likeliest", "likeliest_kept", "samples"]

Expectation: TypeAlias = tuple[tuple[int, float], ...]
"""The likeliest tokens with their probabilities, the likeliest first."""

SHOWN = 10
AROUND = 20
EXPECTED = 3


@dataclass(frozen=True, slots=True)
class Worst:
    """One token: divergence in nats, place in the text, what reference and subject expected there."""

    divergence: float
    place: int
    reference: Expectation
    subject: Expectation


@dataclass(slots=True)
class WorstTokens:
    """The SHOWN tokens of highest divergence so far."""

    heap: list[tuple[float, int, Expectation, Expectation]] = field(default_factory=list)

    def candidates(self, divergence: npt.NDArray[np.float64], *, counted: npt.NDArray[np.bool_]) -> Iterator[int]:
        """Yield the rows of a slice that belong among the worst, the worst first; each is to be added."""
        order = np.argsort(-divergence, kind="stable")
        for index in order[counted[order]][:SHOWN].tolist():
            if divergence[index] <= (self.heap[0][0] if len(self.heap) == SHOWN else 0.0):
                return
            yield index

    def add(self, divergence: float, place: int, reference: Expectation, subject: Expectation) -> None:
        """Take one more; the least of too many goes."""
        (heapq.heappush if len(self.heap) < SHOWN else heapq.heappushpop)(
            self.heap, (divergence, -place, reference, subject)
        )

    def sorted(self) -> list[Worst]:
        """All of them, the worst first."""
        return [Worst(divergence, -place, *both) for divergence, place, *both in sorted(self.heap, reverse=True)]


def likeliest(logits: Float32) -> Expectation:
    """What a row of logits expects."""
    ids = np.argsort(-logits, kind="stable")[:EXPECTED]
    shifted = logits.astype(np.float64) - float(logits.max())
    weights = np.exp(shifted)
    return tuple((int(token), float(weights[token] / weights.sum())) for token in ids)


def likeliest_kept(kept: TopK, row: int) -> Expectation:
    """What a row of a stored reference expected."""
    ids, logs = kept.ids[row, :EXPECTED].tolist(), kept.log_probabilities[row, :EXPECTED].tolist()
    return tuple((token, float(np.exp(value))) for token, value in zip(ids, logs, strict=True))


def samples(
    worst: Sequence[Worst], tokens: Int32Array, detokenize: Callable[[Sequence[int]], str], names: tuple[str, str]
) -> tuple[Sample, ...]:
    """The tokens in their text, and in words what reference and subject (`names`) expected."""
    return tuple(_sample(token, tokens, detokenize, names) for token in worst)


def _sample(
    worst: Worst, tokens: Int32Array, detokenize: Callable[[Sequence[int]], str], names: tuple[str, str]
) -> Sample:
    place = worst.place
    before, here, after = (
        tokens[begin:end].tolist()
        for begin, end in ((max(0, place - AROUND), place), (place, place + 1), (place + 1, place + 1 + AROUND))
    )

    def expected(name: str, expectation: Expectation) -> str:
        words = (f"{_continued(before, [token], detokenize)!r} {share:.0%}" for token, share in expectation)
        return f"{name}: " + ", ".join(words)

    return Sample(
        before=detokenize(before),
        text=_continued(before, here, detokenize),
        after=_continued(before + here, after, detokenize),
        value=worst.divergence,
        detail=f"{expected(names[0], worst.reference)}; {expected(names[1], worst.subject)}",
    )


def _continued(before: list[int], ids: list[int], detokenize: Callable[[Sequence[int]], str]) -> str:
    """The text of `ids` as it stands after `before`: alone, some tokenizers drop its first space."""
    stem, whole = detokenize(before), detokenize(before + ids)
    return whole.removeprefix(stem) if whole.startswith(stem) else detokenize(ids)
