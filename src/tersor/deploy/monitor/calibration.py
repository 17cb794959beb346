"""Confidence that means what it says: a rising step function from a model's confidence to the share that is right.

Isotonic regression by pooling adjacent violators (Ayer, Brunk, Ewing, Reid and Silverman 1955; for probabilities:
Zadrozny and Elkan 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError

__all__ = ["Calibration", "isotonic"]

Float64 = npt.NDArray[np.float64]

LEAST = 50


def isotonic(values: npt.ArrayLike, weights: npt.ArrayLike) -> Float64:
    """Return the rising numbers nearest to `values` in weighted squares, [n].

    >>> isotonic([1.0, 3.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0]).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, length; means rise
    for value, weight in zip(np.asarray(values, np.float64), np.asarray(weights, np.float64), strict=True):
        mean, total, length = float(value), float(weight), 1
        while pools and pools[-1][0] >= mean:
            before, heavier, longer = pools.pop()
            mean = (before * heavier + mean * total) / (heavier + total)
            total, length = total + heavier, length + longer
        pools.append((mean, total, length))
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])


@dataclass(frozen=True, slots=True)
class Calibration:
    """Blocks of confidence, each with the share of right answers that was seen in it.

    lows, highs  [b] the smallest and largest confidence in each block, rising
    shares       [b] of right answers, rising
    counts       [b] labelled requests
    """

    lows: tuple[float, ...]
    highs: tuple[float, ...]
    shares: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.lows), len(self.highs), len(self.shares), len(self.counts)}
        if len(lengths) != 1 or not self.lows:
            raise SchemeError("a calibration has as many ends, shares and counts as blocks, at least one")
        ends = [end for block in zip(self.lows, self.highs, strict=True) for end in block]
        is_rising = all(low <= high for low, high in pairwise(ends)) and all(a <= b for a, b in pairwise(self.shares))
        is_inside = all(0 <= number <= 1 for number in (*ends, *self.shares)) and min(self.counts) >= 1
        if not (is_rising and is_inside):
            raise SchemeError("ends and shares of a calibration rise and lie in 0 … 1, and no block is empty")

    @classmethod
    def fit(cls, confidences: npt.ArrayLike, is_right: npt.ArrayLike) -> Calibration:
        """Return the calibration of labelled requests, 50 or more, that the model was not trained on.

        confidences  [n] in 0 … 1: the probability that the model gives its answer
        is_right     [n] whether the answer was right
        """
        scores, right = _scores(confidences), np.asarray(is_right, np.float64)
        if right.shape != scores.shape or not ((right == 0) | (right == 1)).all() or len(scores) < LEAST:
            raise ShapeError(
                f"{LEAST} requests or more, each right or wrong, are needed, got {scores.shape}, {right.shape}"
            )
        unique, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        fitted = isotonic(np.bincount(place, right) / counts, counts)
        starts = np.flatnonzero(np.concatenate([[True], np.diff(fitted) > 0]))
        ends = np.append(starts[1:], len(fitted)) - 1
        return cls(
            tuple(map(float, unique[starts])),
            tuple(map(float, unique[ends])),
            tuple(map(float, np.clip(fitted[starts], 0, 1))),
            tuple(map(int, np.add.reduceat(counts, starts))),
        )

    def apply(self, confidences: npt.ArrayLike) -> Float64:
        """Return the probability that each answer is right, [n]; between blocks along a straight line."""
        scores = _scores(confidences)
        knots = np.stack([self.lows, self.highs], axis=1).ravel()
        return np.asarray(np.interp(scores, knots, np.repeat(self.shares, 2)), np.float64)

    def block(self, confidences: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the block that each confidence lies in, or nearest to, [n]."""
        scores = _scores(confidences)
        borders = (np.array(self.highs[:-1]) + np.array(self.lows[1:])) / 2
        return np.asarray(np.searchsorted(borders, scores), np.int64)


def _scores(confidences: npt.ArrayLike) -> Float64:
    scores = np.asarray(confidences, np.float64)
    if scores.ndim != 1 or not ((scores >= 0) & (scores <= 1)).all() or not len(scores) or math.isnan(scores.sum()):
        raise ShapeError(f"confidences are one row of numbers in 0 … 1, got {scores!r:.80}")
    return scores
