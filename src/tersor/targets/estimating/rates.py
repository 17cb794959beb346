"""How near to a machine's peaks each kind of operator comes: fitted to nets that were timed.

The time of a call is a sum: so much for the call, so much for each operator that is not fused away, and for each kind
and arithmetic a multiple of what the peak alone would take for its multiply-adds. Bytes in a cache cost a multiple of
what as many operations in float32 would, for caches are as fast as the vectors that they feed; weights of a net that no
cache holds cost a multiple of what memory takes. The multiples are the least squares of relative errors that are not
negative; runs that other work of the machine has disturbed weigh little (Huber 1964).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError
from tersor.core.nets.work import OperatorWork
from tersor.targets.estimating.machine import Machine

Numbers: TypeAlias = npt.NDArray[np.float64]

__all__ = ["CALL", "OPERATOR", "Rates", "Timed", "fit_rates", "terms_of"]

CALL, OPERATOR = "call", "operator"
"""Terms in seconds; all others are multiples of what a peak would take."""
OPERATIONS = 2
"""A multiply-add."""
OF_CACHE = 0.5
"""Share of the last cache that weights of a net find free, call after call."""
ROUNDS, EXACT = 30, 1e-12
SURE = 2.0
"""Times the median error, from which on a run weighs less."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A net that was timed: its operators and the shortest time of a call, seconds."""

    name: str
    work: tuple[OperatorWork, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What was fitted.

    terms    name of a term → its multiple, or seconds
    spread   natural logarithm of the factor that held-out nets and engines stay within, as often as `source` says
    source   what was timed, where, when
    """

    terms: Mapping[str, float]
    spread: float
    source: str

    def __post_init__(self) -> None:
        if any(not value >= 0 for value in self.terms.values()) or not self.spread > 0:
            raise SchemeError("rates are not negative, and have a spread above 0")
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))


def terms_of(work: Iterable[OperatorWork], machine: Machine) -> dict[str, float]:
    """Return what each term is multiplied with: seconds at the peaks of the machine, 1 a call, a count of operators.

    Raises SchemeError where the machine has no peak for an arithmetic, or no bandwidth that is needed.
    """
    work = [row for row in work if not (row.fused or row.kind == "move")]
    weights = sum(row.weight_bytes for row in work)
    is_cached = weights <= (machine.cache_bytes or 0) * OF_CACHE
    found = {CALL: 1.0, OPERATOR: 0.0}

    def add(name: str, seconds: float) -> None:
        found[name] = found.get(name, 0.0) + seconds

    caches = machine.peak("float32") if machine.vectors is None else machine.vectors
    for row in work:
        found[OPERATOR] += 1
        moved = (row.read_bytes + row.written_bytes) / caches
        if not row.macs:
            add(f"{row.kind} {row.arithmetic} bytes", moved)
            continue
        add(f"{row.kind} {row.arithmetic}", OPERATIONS * row.macs / machine.peak(row.arithmetic))
        add(f"activations {row.arithmetic} bytes", moved)
    if weights and is_cached:
        add("weights in a cache", weights / caches)
    elif weights:
        if machine.read_bytes_per_s is None:
            raise SchemeError(f"{machine.name}: nobody tells how fast its memory is")
        add("weights in memory", weights / machine.read_bytes_per_s)
    return found


def fit_rates(timed: Sequence[Timed], machine: Machine) -> dict[str, float]:
    """Return the multiple of every term that is in some net; the more nets have it, the better it is known."""
    rows = [terms_of(each.work, machine) for each in timed]
    names = sorted({name for row in rows for name in row})
    matrix = np.array(
        [[row.get(name, 0.0) / each.seconds for name in names] for row, each in zip(rows, timed, strict=True)]
    )
    weight: Numbers = np.ones(len(rows))
    found: Numbers = np.zeros(len(names))
    for _ in range(ROUNDS):
        found = _not_negative(matrix * weight[:, None], weight)
        off = np.abs(np.log(np.maximum(matrix @ found, 1e-9)))
        bound = SURE * max(float(np.median(off)), 1e-6)
        weight = np.where(off <= bound, 1.0, np.sqrt(bound / np.maximum(off, bound)))
    return dict(zip(names, map(float, found), strict=True))


def _not_negative(a: Numbers, b: Numbers) -> Numbers:
    """Return the x ≥ 0 of least |a x - b|² (Lawson and Hanson 1974, chapter 23): one more above 0 while that helps."""
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1
    a, x = a / scale, np.zeros(a.shape[1])
    free = np.zeros(len(x), bool)
    for _ in range(3 * len(x)):
        slope = np.where(free, -np.inf, a.T @ (b - a @ x))
        if slope.max() <= EXACT:
            break
        free[slope.argmax()] = True
        while True:
            wanted = np.zeros(len(x))
            wanted[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (wanted <= 0)
            if not below.any():
                break
            step = (x[below] / (x[below] - wanted[below] + EXACT)).min()
            x = x + step * (wanted - x)
            free &= x > EXACT
            x[~free] = 0
        x = wanted
    made: Numbers = x / scale
    return made
