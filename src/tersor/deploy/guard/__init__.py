"""GUARD: watches every reply of a quantized variant, and decides when the full-precision variant answers instead."""

from __future__ import annotations

from tersor.deploy.guard.rates import CountWindow, Rate, SteadyClock, TimeWindow

__all__ = [
    "CountWindow",
    "Rate",
    "SteadyClock",
    "TimeWindow",
]
