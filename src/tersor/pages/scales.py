"""From values to places on a chart: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "finite", "linear_scale", "log_scale"]

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
MAX_TICKS = 12
LARGEST = 1e200
"""Values beyond are not drawn: their differences are no numbers any more."""


def finite(values: Iterable[float | None]) -> list[float]:
    """Return the values that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value) and abs(value) < LARGEST]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low` … `high` to the coordinates `begin` … `end`; values beyond are held at the ends.

    ticks  round values from low to high, in order
    """

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        share = (value - low) / (high - low)
        return self.begin + (self.end - self.begin) * min(max(share, 0.0), 1.0)


def linear_scale(
    values: Iterable[float | None], begin: float, end: float, *, count: int = 5, zero: bool = False
) -> Scale:
    """Return a scale with about `count` round ticks that holds all values, and 0 if asked for.

    >>> linear_scale([0.0, 8.7], 0, 100).ticks
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """
    known = finite(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / LARGEST):
        margin = abs(high) * 0.1 if abs(high) > 1 / LARGEST else 1.0
        low, high = low - margin * (not zero), high + margin
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], begin, end, ticks)


def log_scale(values: Iterable[float | None], begin: float, end: float) -> Scale:
    """Return a scale over whole decades, with a tick each (or fewer, where there are many); only values above 0 count.

    Less than a decade and a half is divided at 1, 2, 5 instead, so that there is something to read.

    >>> log_scale([0.002, 3.0], 0, 100).ticks
    (0.001, 0.01, 0.1, 1.0, 10.0)
    >>> log_scale([0.012, 0.09], 0, 100).ticks
    (0.01, 0.02, 0.05, 0.1)
    """
    known = [value for value in finite(values) if value > 1 / LARGEST] or [0.1, 10.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    if high - low < 1.5:
        steps = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1.0, 2.0, 5.0)]
        below, above = (
            max(s for s in steps if s <= min(known) * 1.0001),
            min((s for s in steps if s >= max(known) * 0.9999), default=10.0 ** (last + 1)),
        )
        if below == above:
            above = next((s for s in steps if s > below), below * 10)
        ticks = tuple(float(f"{step:.3g}") for step in steps if below <= step <= above)
        return Scale(ticks[0], ticks[-1], begin, end, ticks, is_log=True)
    last = max(last, first + 1)
    stride = max(1, math.ceil((last - first) / 8))
    powers = range(first, last + 1, stride)
    ticks = tuple(float(f"1e{power}") for power in powers)
    return Scale(10.0**first, 10.0**last, begin, end, ticks, is_log=True)


def _round_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in STEPS if step * power >= rough * 0.9999)
