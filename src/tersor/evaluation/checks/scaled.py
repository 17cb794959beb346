"""How far two matrices differ once rows and columns may be scaled: what AWQ and SmoothQuant do between layers.

A scale that one tensor takes out of its rows and the next puts into its columns leaves the function of the model as it
is, so it is no error. A swapped head, a transposition or another layer's weights are none of these: no scales of rows
and columns make one random matrix of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tersor.core.arrays import Float32
from tersor.models import ModelTensor

__all__ = ["error_beyond_scales", "paired_rows"]

ROUNDS = 8
"""Of fitting rows to columns and columns to rows at most; two are enough where rounding is left."""
SLICE_WEIGHTS = 1 << 22


def error_beyond_scales(found: ModelTensor, wanted: ModelTensor) -> float:
    """Return rms(found - R wanted C) / rms(found) for the best diagonal R and C; infinite where `found` is all zeros.

    The tensors have one shape. Each matrix of a stack of experts has scales of its own. A vector may be scaled by
    anything positive: its error is 0, or infinite where a sign, a zero or a value that is no number differs.
    """
    if len(found.shape) < 2:
        return _of_vectors(found.read(0, found.rows), wanted.read(0, wanted.rows))
    rows = found.shape[-2]
    error = power = 0.0
    for start in range(0, found.rows, rows):
        left, whole = _of_matrix(found, wanted, start, start + rows)
        error, power = error + left, power + whole
    return math.sqrt(error / power) if power > 0 and math.isfinite(error) else math.inf


def _of_vectors(found: Float32, wanted: Float32) -> float:
    same = np.isfinite(found) & (np.sign(found) == np.sign(wanted))
    return 0.0 if same.all() else math.inf


def _of_matrix(found: ModelTensor, wanted: ModelTensor, start: int, stop: int) -> tuple[float, float]:
    """Squares of what is left, and of what there is."""
    columns = np.ones(found.columns)
    left = before = math.inf
    whole = 0.0
    for _ in range(ROUNDS):
        above, below = np.zeros(found.columns), np.zeros(found.columns)
        before, left, whole = left, 0.0, 0.0
        for pair in paired_rows(found, wanted, start, stop):
            ours, theirs = (rows.astype(np.float64) for rows in pair)
            expected = theirs * columns
            factors = _ratio((ours * expected).sum(axis=1), (expected * expected).sum(axis=1))[:, None]
            left += float(((ours - factors * expected) ** 2).sum())
            whole += float((ours * ours).sum())
            scaled = factors * theirs
            above += (ours * scaled).sum(axis=0)
            below += (scaled * scaled).sum(axis=0)
        columns = _ratio(above, below)
        if not left < 0.9 * before:
            break
    return left, whole


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def paired_rows(found: ModelTensor, wanted: ModelTensor, start: int, stop: int) -> Iterator[tuple[Float32, Float32]]:
    """Yield rows `start` to `stop` of two tensors of one shape, a few at a time."""
    step = max(1, SLICE_WEIGHTS // found.columns)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        yield found.read(first, last), wanted.read(first, last)
