"""Every alert: one row each, which the gateway goes by, and which the files for Prometheus are written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["LEAST_REQUESTS", "RULES", "WINDOW_S", "Rule", "Severity"]

Severity: TypeAlias = Literal["critical", "warning"]
WINDOW_S = 300
LEAST_REQUESTS = 20
"""In a window; a share of fewer says little."""

_BY = "sum by (model, variant)"
_FAILED = f"{_BY} (rate(tersor_failed_total[5m]))"
_FELL_BACK = f"{_BY} (rate(tersor_fell_back_total[5m]))"
_ASKED = f"({_BY} (rate(tersor_requests_total[5m])) + {_FAILED} + {_FELL_BACK})"
_ENOUGH = f"{_ASKED} * {WINDOW_S} >= {LEAST_REQUESTS}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert.

    figure     what is looked at: a key of `figures`, or of the watch's own
    limit      it fires above this (below, where `is_below`) …
    clear      … and ends only once it is back on this side of that: hysteresis
    for_s      seconds that it must have lasted before it fires
    expr       the figure as PromQL, by model and variant
    guard      PromQL without which nothing is said; empty: none
    """

    name: str
    figure: str
    limit: float
    clear: float
    for_s: int
    severity: Severity
    expr: str
    summary: str
    remedy: str
    guard: str = ""
    is_below: bool = False

    def is_over(self, value: float, limit: float) -> bool:
        """Whether a value lies on the bad side of a limit."""
        return value < limit if self.is_below else value > limit


def _drift(side: str) -> str:
    return f'max by (model, variant) (tersor_drift_alarm{{side="{side}"}})'


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "EngineDown",
            "engine_down",
            0.5,
            0.5,
            60,
            "critical",
            "1 - tersor_engine_ready",
            "An engine does not answer",
            "look at its reason in GET /v1/rollout; the fallback answers meanwhile",
        ),
        Rule(
            "EngineRestarts",
            "restarts",
            2.5,
            0.5,
            0,
            "warning",
            f"{_BY} (increase(tersor_engine_starts_total[15m]))",
            "An engine was loaded three times in 15 minutes or more",
            "it crashes: see the log of the gateway",
        ),
        Rule(
            "HighErrorShare",
            "error_share",
            0.01,
            0.005,
            120,
            "critical",
            f"{_FAILED} / {_ASKED}",
            "More than 1 % of the requests got no answer",
            "roll back to the fallback, or give the deployment one",
            _ENOUGH,
        ),
        Rule(
            "HighFallbackShare",
            "fallback_share",
            0.05,
            0.03,
            300,
            "warning",
            f"{_FELL_BACK} / {_ASKED}",
            "The fallback answers more than 5 % of the requests",
            "see which sentinel finds what: tersor_findings_total",
            _ENOUGH,
        ),
        Rule(
            "SlowAnswers",
            "latency_p99_s",
            10.0,
            8.0,
            300,
            "warning",
            "histogram_quantile(0.99, sum by (model, variant, le) (rate(tersor_request_seconds_bucket[5m])))",
            "One answer in a hundred takes longer than 10 s",
            "lower in_flight, or give the engine more threads",
            _ENOUGH,
        ),
        Rule(
            "LowAgreement",
            "agreement",
            0.97,
            0.98,
            300,
            "critical",
            "tersor_agreement_ratio",
            "Fewer than 97 % of the answers agree with full precision",
            "roll back; quantize with more bits",
            is_below=True,
        ),
        Rule(
            "LowAccuracy",
            "accuracy",
            0.90,
            0.91,
            300,
            "critical",
            "tersor_accuracy_ratio",
            "Fewer than 90 % of the labelled answers are right",
            "compare with full precision: tersor report --deployment",
            is_below=True,
        ),
        Rule(
            "InputDrift",
            "input_drift",
            0.5,
            0.5,
            0,
            "warning",
            _drift("input"),
            "Requests are no longer like the calibration data",
            "calibrate on recent traffic, gate, and roll out",
        ),
        Rule(
            "OutputDrift",
            "output_drift",
            0.5,
            0.5,
            0,
            "warning",
            _drift("output"),
            "Answers are no longer like those at first",
            "compare with full precision; see whether the inputs drifted too",
        ),
        Rule(
            "HighMemory",
            "memory_share",
            0.90,
            0.85,
            300,
            "warning",
            f"{_BY} (tersor_engine_memory_bytes) / ignoring (model, variant) group_left () tersor_machine_memory_bytes",
            "An engine holds more than 90 % of the machine's memory",
            "lower slots or context, or quantize with fewer bits",
        ),
    )
}
"""Name → rule."""
