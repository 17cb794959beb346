"""GUARD: watches every reply of a quantized variant, and decides when the full-precision variant answers instead."""

from __future__ import annotations

from tersor.deploy.guard.breaker import Breaker, BreakerRules, Permit, Transition
from tersor.deploy.guard.budget import REASONS, Budget, Grant, PurseRules
from tersor.deploy.guard.findings import SENTINELS, Finding, Sentinel
from tersor.deploy.guard.ladder import Case, Decision, Ladder, LadderRules, Progress, Rates, Settled
from tersor.deploy.guard.limits import Limits
from tersor.deploy.guard.rates import CountWindow, Rate, SteadyClock, TimeWindow
from tersor.deploy.guard.sentinels import LengthCaps, ReplyWatch, Token
from tersor.deploy.guard.tensors import judge_tensors

__all__ = [
    "REASONS",
    "SENTINELS",
    "Breaker",
    "BreakerRules",
    "Budget",
    "Case",
    "CountWindow",
    "Decision",
    "Finding",
    "Grant",
    "Ladder",
    "LadderRules",
    "LengthCaps",
    "Limits",
    "Permit",
    "Progress",
    "PurseRules",
    "Rate",
    "Rates",
    "ReplyWatch",
    "Sentinel",
    "Settled",
    "SteadyClock",
    "TimeWindow",
    "Token",
    "Transition",
    "judge_tensors",
]
