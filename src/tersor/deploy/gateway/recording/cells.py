"""What was counted of one variant in one minute, or on one day: of fixed size, and two can be added."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tersor.evaluation.statistics import proportion_interval

__all__ = ["Cell", "added", "figures", "less_noise", "quantile", "step_of"]

LEAST_S = 1e-4
RATIO = 1.05
STEPS = 340
"""0.1 ms · 1.05^340 is 1 600 s: what lies outside is counted in the first and last step."""
_SCALE = 1 / math.log(RATIO)


def step_of(seconds: float) -> int:
    """Return the step of a time: each is 5 % wide, so that a quantile is wrong by 2.5 % at most.

    >>> step_of(0.0), step_of(0.00011), step_of(1e9)
    (0, 1, 340)
    """
    return min(STEPS, int(math.log(seconds / LEAST_S) * _SCALE)) if seconds > LEAST_S else 0


@dataclass(slots=True)
class Cell:
    """A minute or a day, Unix seconds `at` its start.

    answered         requests that got a whole answer from the variant
    failed           requests that it was to answer, and that got none from anybody
    fell_back        requests that it was to answer, and that the fallback did
    tokens           in its answers
    agreed, compared  answers that said the same as the reference's (rows of a batch count as parts), and all that were
                     set beside them
    apart, measured  sum of distances (tensors) or divergences (tokens, nats) of answers, and of how many
    floor_agreed, floors, floor_apart  the same of the reference's answers, set beside themselves
    right, labelled   answers whose label came, and those that were right
    expected, estimated  how many of the answers are right by a calibrated estimate, and how many of them that is of
    memory_bytes     most that its engine held
    whole, first     step of `step_of` → answers: until the end, until the first part
    """

    at: int
    answered: int = 0
    failed: int = 0
    fell_back: int = 0
    tokens: int = 0
    agreed: float = 0.0
    compared: int = 0
    apart: float = 0.0
    measured: int = 0
    floor_agreed: float = 0.0
    floors: int = 0
    floor_apart: float = 0.0
    right: int = 0
    labelled: int = 0
    expected: float = 0.0
    estimated: int = 0
    memory_bytes: int = 0
    whole: dict[int, int] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)

    def add(self, other: Cell) -> None:
        """Take in what another has counted; it keeps its own start."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)
        for ours, theirs in ((self.whole, other.whole), (self.first, other.first)):
            for step, count in theirs.items():
                ours[step] = ours.get(step, 0) + count

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON; what is zero is left out."""
        found: dict[str, Any] = {name: value for name in NUMBERS if (value := getattr(self, name))}
        for name in ("whole", "first"):
            if steps := getattr(self, name):
                found[name] = {str(step): count for step, count in sorted(steps.items())}
        return found

    @classmethod
    def of(cls, at: int, given: Mapping[str, Any]) -> Cell:
        """Read what `to_object` made; ValueError, TypeError or KeyError for anything else."""
        found = cls(at)
        for name in NUMBERS:
            setattr(found, name, (_sum if name in SUMS else _count)(given.get(name, 0)))
        steps = {
            name: {int(step): _count(count) for step, count in dict(given.get(name, {})).items()}
            for name in ("whole", "first")
        }
        if not all(0 <= step <= STEPS for one in steps.values() for step in one):
            raise ValueError("a step that there is not")
        found.whole, found.first = steps["whole"], steps["first"]
        return found


NUMBERS = tuple(one.name for one in fields(Cell) if one.name not in ("at", "whole", "first"))
COUNTS = tuple(name for name in NUMBERS if name != "memory_bytes")
SUMS = tuple(one.name for one in fields(Cell) if one.type == "float")


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _sum(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r:.40} is no sum")
    return float(value)


def added(cells: Iterable[Cell]) -> Cell:
    """Return all cells in one."""
    found = Cell(0)
    for cell in cells:
        found.add(cell)
    return found


def quantile(steps: Mapping[int, int], share: float) -> float | None:
    """Return the time below which `share` of the answers lie, seconds; None without any.

    >>> quantile({step_of(0.1): 99, step_of(2.0): 1}, 0.5)  # doctest: +ELLIPSIS
    0.09...
    """
    total = sum(steps.values())
    if not total:
        return None
    left = math.ceil(share * total)
    for step in sorted(steps):
        left -= steps[step]
        if left <= 0:
            break
    return float(LEAST_S * RATIO ** (step + 0.5))


def figures(cell: Cell, seconds: float) -> dict[str, float | None]:
    """Return the figures of a span of `seconds`; None where nothing tells of one.

    Times in seconds, memory in bytes, rates per second, the rest shares of 1; `apart` is the mean distance or
    divergence. A fallback counts as asked and answered by somebody else. Of agreement and apart the floor is taken off:
    what the reference differs from itself by.
    """
    asked = cell.answered + cell.failed + cell.fell_back
    return {
        "requests": float(asked),
        "latency_p50_s": quantile(cell.whole, 0.50),
        "latency_p95_s": quantile(cell.whole, 0.95),
        "latency_p99_s": quantile(cell.whole, 0.99),
        "first_part_p50_s": quantile(cell.first, 0.50),
        "first_part_p95_s": quantile(cell.first, 0.95),
        "requests_per_s": cell.answered / seconds,
        "tokens_per_s": cell.tokens / seconds,
        "memory_bytes": float(cell.memory_bytes) if cell.memory_bytes else None,
        "error_share": _share(cell.failed, asked),
        "fallback_share": _share(cell.fell_back, asked),
        "agreement": less_noise(_share(cell.agreed, cell.compared), cell.floor_agreed, cell.floors),
        "agreement_floor": _share(cell.floor_agreed, cell.floors),
        "apart": _apart(cell),
        "apart_floor": _share(cell.floor_apart, cell.floors),
        "accuracy": _share(cell.right, cell.labelled),
        "estimated_accuracy": _share(cell.expected, cell.estimated),
    }


def less_noise(agreement: float | None, floor_agreed: float, floors: int) -> float | None:
    """Return an agreement without the disagreement that is noise: as much of that as `floors` measurements show.

    Few of them show little, so that one odd measurement excuses nothing: the lower end of a 95 % interval is taken.

    >>> less_noise(0.95, 100.0, 100), less_noise(0.5, 0.0, 1)
    (0.95, 0.52...)
    """
    if agreement is None or floors == 0:
        return agreement
    noise = floors - math.ceil(floor_agreed)
    surely = proportion_interval([1.0] * noise + [0.0] * (floors - noise)).low if noise else 0.0
    return min(1.0, agreement + surely)


def _apart(cell: Cell) -> float | None:
    if not cell.measured:
        return None
    floor = cell.floor_apart / cell.floors if cell.floors else 0.0
    return max(0.0, cell.apart / cell.measured - floor)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
