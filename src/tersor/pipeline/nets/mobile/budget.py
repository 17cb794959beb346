"""What a phone leaves to a net: memory, time and room in the app, and whether a file keeps to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Benchmark, Limit
from tersor.evaluation.estimates.estimate import RESERVED
from tersor.evaluation.limits import judge
from tersor.targets.profiles.table import profile

__all__ = ["ESTIMATED", "MEGA", "Budget"]

MEGA = 1e6
"""Bytes of a megabyte, as app stores count."""
METRICS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "max_memory_mb": ("resident_bytes", MEGA),
        "max_latency_ms": ("latency_p50_ms", 1.0),
        "max_file_mb": ("file_bytes", MEGA),
    }
)
"""Demand → the metric that it bounds, and its unit in units of the metric."""


ESTIMATED = "estimated_latency_ms"
"""The metric that stands for a phone that is not here."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Demands; None: none.

    max_memory_mb   megabytes that a process may grow by when the program is loaded and run
    max_latency_ms  milliseconds of one call, half of all calls take at most that: here, or as estimated on `phone`
    max_file_mb     megabytes of the file
    phone           a profile, of whose latency an estimate is made and judged; what its memory does not hold, fails
    """

    max_memory_mb: float | None = None
    max_latency_ms: float | None = None
    max_file_mb: float | None = None
    phone: str | None = None

    def __post_init__(self) -> None:
        for name in METRICS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SchemeError(f"{name} is more than 0, got {value:g}")
        if self.phone is not None:
            profile(self.phone)

    @property
    def demands(self) -> dict[str, float]:
        """What is asked for, by name."""
        return {name: getattr(self, name) for name in METRICS if getattr(self, name) is not None}

    def limits(self, found: Benchmark, unknown: str = "") -> tuple[Limit, ...]:
        """Judge every demand; what was not measured is not met, and says so.

        unknown  why there is no estimate for `phone`, where there is none
        """
        made = []
        for name, value in self.demands.items():
            metric, unit = METRICS[name]
            metric = ESTIMATED if self.phone is not None and name == "max_latency_ms" else metric
            measured = found.metric(metric)
            made.append(
                Limit(
                    metric,
                    value * unit,
                    False,
                    "fail",
                    unknown or f"{metric} is not known for {found.engine}: no basis",
                )
                if measured is None
                else judge(measured, value * unit)
            )
        return (*made, *self._room(found))

    def _room(self, found: Benchmark) -> tuple[Limit, ...]:
        """Hold a program against the memory of the phone, where a document tells it and no smaller bound is given."""
        memory = None if self.phone is None else profile(self.phone).memory_bytes
        resident = found.metric(METRICS["max_memory_mb"][0])
        if memory is None or resident is None or self.max_memory_mb is not None:
            return ()
        return (judge(resident, memory.value * (1 - RESERVED)),)
