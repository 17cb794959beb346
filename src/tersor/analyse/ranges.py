"""What the numbers of a matrix, and of its inputs, are like: ranges and outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.calibrate.accumulate import Sums

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ranges", "ranges_of"]

FAR = 6.0
"""An outlier is further from zero than so many times the root mean square: one weight of a normal 500 million."""
AT_ONCE = 1 << 22
"""Weights that are looked at together: of an embedding's all in double precision would be gigabytes."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of one matrix (of stacked ones together), and of what it reads.

    largest      largest |w|
    rms          root mean square of w
    outliers     share of the weights beyond FAR · rms
    tail         kurtosis: 3 for a normal distribution, more for one with long tails
    input_peak   largest |x| of a column over the root mean square of the whole input; None where no input is known
    input_spread root mean square of the loudest input column over that of the median one; None likewise
    """

    largest: float
    rms: float
    outliers: float
    tail: float
    input_peak: float | None = None
    input_spread: float | None = None


def ranges_of(weight: Tensor, sums: Sums | None) -> Ranges:
    """Return the ranges of `weight`, and of its input where `sums` know of one."""
    flat, count = weight.reshape(-1), weight.numel()
    pieces = [flat[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]
    square = sum(float(piece.double().square().sum()) for piece in pieces) / count
    rms = square**0.5
    largest = max(float(piece.abs().max()) for piece in pieces)
    if square == 0:
        return Ranges(largest, rms, 0.0, 0.0, *_of_inputs(sums))
    outliers = sum(int((piece.double().abs() > FAR * rms).sum()) for piece in pieces) / count
    tail = sum(float(piece.double().square().square().sum()) for piece in pieces) / count / square**2
    return Ranges(largest, rms, outliers, tail, *_of_inputs(sums))


def _of_inputs(sums: Sums | None) -> tuple[float | None, float | None]:
    if sums is None or not sums.tokens or not bool(sums.squares.any()):
        return None, None
    means = sums.squares / sums.tokens
    median = float(means.median())
    spread = (float(means.max()) / median) ** 0.5 if median > 0 else None
    peak = None if sums.peaks is None else float(sums.peaks.max()) / float(means.mean()) ** 0.5
    return peak, spread
