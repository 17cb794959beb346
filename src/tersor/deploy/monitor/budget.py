"""Many features, many windows, few false alarms: a budget over time, and Benjamini–Hochberg over features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError

__all__ = ["FalseAlarmBudget", "adjusted_p_values", "alarming"]


@dataclass(frozen=True, slots=True)
class FalseAlarmBudget:
    """How many windows with a false alarm are accepted in a span of time, while nothing drifts.

    alarms    on average, in `span_s` seconds
    window_s  seconds from one window to the next
    The level of a window is alarms · window_s / span_s; it holds for windows that depend on one another as well, since
    averages add up.
    """

    alarms: float = 1.0
    span_s: float = 30 * 86_400.0
    window_s: float = 3600.0

    def __post_init__(self) -> None:
        spans = (self.alarms, self.span_s, self.window_s)
        if not all(0 < number < math.inf for number in spans) or self.level >= 1:
            raise SchemeError(f"fewer alarms than windows are accepted in a span, each positive: {self}")

    @property
    def level(self) -> float:
        """Probability of a false alarm in one window.

        >>> round(FalseAlarmBudget().level, 5)
        0.00139
        """
        return self.alarms * self.window_s / self.span_s

    def draws(self, features: int) -> int:
        """Return the draws that make p-values fine enough for the smallest step of Benjamini and Hochberg, twice over.

        >>> FalseAlarmBudget().draws(10)
        28800
        """
        return math.ceil(4 * max(1, features) / self.level)


def adjusted_p_values(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the level from which on each would be called a discovery, [n].

    Source: Benjamini and Hochberg 1995, JRSS B 57.

    Among discoveries at a level, that share is false on average, at most, where features are independent or rise and
    fall together. While nothing drifts, the level is the probability of any discovery.

    >>> adjusted_p_values([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ShapeError(f"one row of p-values in 0 … 1 is needed, got {p!r:.80}")
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    found = np.empty_like(p)
    found[order] = np.minimum(1.0, np.minimum.accumulate(scaled))
    return found


def alarming(p_values: Mapping[str, float], budget: FalseAlarmBudget) -> tuple[str, ...]:
    """Return the features (or layers) of one window that have drifted, those with the smallest p-values first.

    >>> alarming({"length": 1e-6, "language": 0.01}, FalseAlarmBudget())
    ('length',)
    """
    if not p_values:
        return ()
    adjusted = adjusted_p_values(list(p_values.values()))
    found = [name for name, level in zip(p_values, adjusted, strict=True) if level <= budget.level]
    return tuple(sorted(found, key=p_values.__getitem__))
