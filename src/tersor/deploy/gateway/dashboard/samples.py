"""The last 15 minutes of the metrics, in bounded memory: what the page draws.

Read from the same counters that Prometheus reads, every few seconds.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tersor.deploy.gateway.metrics import Metrics

__all__ = ["Figures", "Samples", "quantile"]

STEP_S = 5.0
KEPT = 181
"""Samples of 15 minutes, both ends counted."""
MINUTE = 12
"""Samples that a point of a latency or share looks back over."""
MOST_MODELS = 32
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of one model since the gateway began.

    answered  by variant
    within    requests by bound of their time in seconds, those of smaller bounds among them
    """

    answered: Mapping[str, float] = field(default_factory=dict)
    fallbacks: float = 0.0
    within: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of requests in a time.

    rate            a second
    latencies       quantiles of QUANTILES in seconds, interpolated between bounds; None: no request
    fallback_share  of the answered; None: none was
    answered        by variant
    """

    rate: float
    latencies: tuple[float | None, ...]
    fallback_share: float | None
    answered: Mapping[str, float]


@dataclass(eq=False)
class Samples:
    """A ring of samples; times are those of a clock that never jumps, and Unix times only where they are shown."""

    metrics: Metrics
    _ring: deque[tuple[float, Mapping[str, Counted]]] = field(default_factory=lambda: deque(maxlen=KEPT), init=False)

    def take(self) -> None:
        """Read the counters now."""
        self._ring.append((time.monotonic(), _counted(self.metrics)))

    def figures(self, model: str) -> Figures | None:
        """Return the figures of all that is kept; None before there are two samples."""
        return _between(self._ring[0], self._ring[-1], model) if len(self._ring) > 1 else None

    def series(self, models: Sequence[str]) -> dict[str, Any]:
        """Return what charts draw: `at`, and by model a list a line, None where there is nothing to say.

        rate is of the time since the sample before; latencies and shares of fallbacks are of the last minute.
        """
        ring = list(self._ring)
        lines: dict[str, Any] = {}
        for model in models[:MOST_MODELS]:
            last = [_between(before, after, model) for before, after in pairwise(ring)]
            minutes = [_between(ring[max(0, index - MINUTE)], ring[index], model) for index in range(1, len(ring))]
            lines[model] = {
                "rate": [_short(one.rate) for one in last],
                **{
                    f"p{quantile * 100:.0f}": [_short(one.latencies[index]) for one in minutes]
                    for index, quantile in enumerate(QUANTILES)
                },
                "fallback": [_short(one.fallback_share) for one in minutes],
            }
        start = time.time() - time.monotonic()
        return {"at": [round(start + at, 1) for at, _ in ring[1:]], "models": lines}


def quantile(within: Mapping[float, float], share: float) -> float | None:
    """Return a quantile from counts by upper bound, smaller bounds among them; None where nothing was counted.

    Interpolated between bounds; what is beyond the last finite one is told as that bound.

    >>> quantile({0.1: 5, 0.2: 10, math.inf: 10}, 0.75)
    0.15000000000000002
    """
    bounds = sorted(within)
    wanted = share * within[bounds[-1]] if bounds else 0.0
    if wanted <= 0:
        return None
    low, below = 0.0, 0.0
    for bound in bounds:
        if within[bound] >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / (within[bound] - below)
        low, below = bound, within[bound]
    return low


def _counted(metrics: Metrics) -> dict[str, Counted]:
    answered: dict[str, dict[str, float]] = {}
    within: dict[str, dict[float, float]] = {}
    fallbacks: dict[str, float] = {}
    for name, labels, value in _samples(metrics.requests):
        if name.endswith("_total"):
            mine = answered.setdefault(labels["model"], {})
            mine[labels["variant"]] = mine.get(labels["variant"], 0.0) + value
    for name, labels, value in _samples(metrics.seconds):
        if name.endswith("_bucket"):
            bounds = within.setdefault(labels["model"], {})
            bound = float(labels["le"])
            bounds[bound] = bounds.get(bound, 0.0) + value
    for name, labels, value in _samples(metrics.fallbacks):
        if name.endswith("_total"):
            fallbacks[labels["model"]] = fallbacks.get(labels["model"], 0.0) + value
    return {
        model: Counted(answered.get(model, {}), fallbacks.get(model, 0.0), within.get(model, {}))
        for model in list({**answered, **within, **fallbacks})[: 4 * MOST_MODELS]
    }


def _samples(metric: Any) -> list[tuple[str, Mapping[str, str], float]]:
    return [(one.name, one.labels, one.value) for family in metric.collect() for one in family.samples]


def _between(
    before: tuple[float, Mapping[str, Counted]], after: tuple[float, Mapping[str, Counted]], model: str
) -> Figures:
    seconds = max(after[0] - before[0], 1e-3)
    old, new = before[1].get(model, Counted()), after[1].get(model, Counted())
    answered = {name: count - old.answered.get(name, 0.0) for name, count in new.answered.items()}
    within = {bound: count - old.within.get(bound, 0.0) for bound, count in new.within.items()}
    total = sum(answered.values())
    share = min(1.0, (new.fallbacks - old.fallbacks) / total) if total else None
    return Figures(total / seconds, tuple(quantile(within, one) for one in QUANTILES), share, answered)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
