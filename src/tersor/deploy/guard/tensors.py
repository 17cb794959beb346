"""Judges the tensors of one answer, by themselves: numbers that are none, outputs that do not depend on the input."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError
from tersor.deploy.guard.findings import Finding, found
from tersor.deploy.guard.limits import Limits

__all__ = ["judge_tensors"]

Array: TypeAlias = npt.NDArray[Any]
USUAL = Limits()


def judge_tensors(
    outputs: Mapping[str, Array],
    *,
    inputs: Mapping[str, Array] | None = None,
    scores: Collection[str] = (),
    limits: Limits | None = None,
) -> tuple[Finding, ...]:
    """Return what the sentinels find in `outputs`, at most one finding a sentinel and tensor.

    outputs  by name, not modified; only floating ones are judged, for labels may well be equal
    inputs   by name, first axis the batch; without them nothing is said about outputs that do not vary
    scores   names of outputs whose last axis are scores of classes, logits or probabilities: their margin and flatness
             are judged, as probabilities (softmax of rows that do not sum to 1)
    Raises SchemeError where `scores` names no output.

    >>> found = judge_tensors({"y": np.array([[0.0, np.nan]])})
    >>> [(finding.sentinel, finding.place, finding.value) for finding in found]
    [('bad_number', 'y', 1.0)]
    """
    if scores and (unknown := sorted(set(scores) - set(outputs))):
        raise SchemeError(f"no output is called {unknown[0]!r}; there are {', '.join(outputs) or 'none'}")
    limits = USUAL if limits is None else limits
    distinct = _distinct_rows(inputs) if inputs else 0
    findings: list[Finding] = []
    for name, values in outputs.items():
        if values.dtype.kind != "f" or not values.size:
            continue
        is_finite = np.isfinite(values)
        if not is_finite.all():
            findings.append(found("bad_number", name, values.size - int(np.count_nonzero(is_finite)), 0))
            continue
        if distinct >= limits.constant_rows:
            findings += _constant(name, _wide(values), limits)
        if name in scores:
            findings += _scored(name, _wide(values), limits)
    return tuple(finding for finding in findings if finding.sentinel not in limits.ignored)


def _wide(values: Array) -> Array:
    """Return numbers in 64 bits: those of 16 overflow in differences."""
    return values.astype(np.float64) if values.dtype.itemsize < 8 else values


def _distinct_rows(inputs: Mapping[str, Array]) -> int:
    """Return how many different samples the batch has; those of inputs of another length than the first are ignored."""
    batched = [np.ascontiguousarray(values) for values in inputs.values() if values.ndim]
    if not batched:
        return 0
    batched = [values for values in batched if len(values) == len(batched[0])]
    return len({tuple(values[row].tobytes() for values in batched) for row in range(len(batched[0]))})


def _constant(name: str, values: Array, limits: Limits) -> list[Finding]:
    """Tell an output with several numbers a sample that is the same for the whole batch."""
    if values.ndim < 2 or len(values) < limits.constant_rows or values[0].size < 2:
        return []
    largest = float(np.abs(values).max())
    spread = float(np.ptp(values, axis=0).max()) / largest if largest else 0.0
    return [found("constant_output", name, spread, limits.constant_spread)] if spread <= limits.constant_spread else []


def _scored(name: str, values: Array, limits: Limits) -> list[Finding]:
    """Tell rows of scores that prefer nothing, or hardly."""
    if not values.ndim or values.shape[-1] < 2:
        return []
    rows = values.reshape(-1, values.shape[-1])
    flat = int(np.count_nonzero(np.ptp(rows, axis=1) == 0))
    if flat:
        return [found("flat_scores", name, flat, 0)]
    best = np.partition(_probabilities(rows), -2, axis=1)[:, -2:]
    margin = float((best[:, 1] - best[:, 0]).min())
    return [found("low_margin", name, margin, limits.score_margin)] if margin < limits.score_margin else []


def _probabilities(rows: Array) -> Array:
    """Return rows that are probabilities as they are, others as their softmax."""
    if rows.min() >= 0 and bool(np.all(np.abs(rows.sum(axis=1) - 1) < 1e-3)):
        return rows
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    made: Array = powers / powers.sum(axis=1, keepdims=True)
    return made
