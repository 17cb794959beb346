"""What a phone leaves to a net: memory, time and room in the app, and whether a file keeps to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tersor.core.errors import SchemeError
from tersor.core.evaluation import Benchmark, Limit
from tersor.evaluation.limits import judge

__all__ = ["MEGA", "Budget"]

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


@dataclass(frozen=True, slots=True)
class Budget:
    """Demands; None: none.

    max_memory_mb   megabytes that a process may grow by when the program is loaded and run
    max_latency_ms  milliseconds of one call, half of all calls take at most that
    max_file_mb     megabytes of the file
    """

    max_memory_mb: float | None = None
    max_latency_ms: float | None = None
    max_file_mb: float | None = None

    def __post_init__(self) -> None:
        for name in METRICS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SchemeError(f"{name} is more than 0, got {value:g}")

    @property
    def demands(self) -> dict[str, float]:
        """What is asked for, by name."""
        return {name: getattr(self, name) for name in METRICS if getattr(self, name) is not None}

    def limits(self, found: Benchmark) -> tuple[Limit, ...]:
        """Judge every demand; what was not measured is not met, and says so."""
        made = []
        for name, value in self.demands.items():
            metric, unit = METRICS[name]
            measured = found.metric(metric)
            made.append(
                Limit(
                    metric,
                    value * unit,
                    False,
                    "fail",
                    f"{metric} is not known for {found.engine}: no basis to judge it",
                )
                if measured is None
                else judge(measured, value * unit)
            )
        return tuple(made)
