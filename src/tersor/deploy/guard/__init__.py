"""GUARD: watches every reply of a quantized variant, and decides when the full-precision variant answers instead."""

from __future__ import annotations

from tersor.deploy.guard.breaker import Breaker, BreakerRules, Permit, Transition
from tersor.deploy.guard.budget import REASONS, Budget, Grant, PurseRules
from tersor.deploy.guard.rates import CountWindow, Rate, SteadyClock, TimeWindow

__all__ = [
    "REASONS",
    "Breaker",
    "BreakerRules",
    "Budget",
    "CountWindow",
    "Grant",
    "Permit",
    "PurseRules",
    "Rate",
    "SteadyClock",
    "TimeWindow",
    "Transition",
]
