"""Every alert: one row each, which the gateway goes by, and which the files for Prometheus are written from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError

__all__ = ["LEAST_REQUESTS", "RULES", "WINDOW_S", "Rule", "Severity", "changed"]

Severity: TypeAlias = Literal["critical", "warning"]
WINDOW_S = 300
LEAST_REQUESTS = 20
"""In a window; a share of fewer says little."""
MOST_FOR_S = 86_400
FLAGS = ("engine_down", "input_drift", "output_drift")

_BY = "sum by (job, instance, model, variant)"
_BY_STEP = "sum by (job, instance, model, variant, le)"
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
    summary    without numbers: limits can be changed
    expr       the figure as PromQL, by gateway, model and variant
    guard      PromQL without which nothing is said; empty: none
    """

    name: str
    figure: str
    limit: float
    clear: float
    for_s: float
    severity: Severity
    expr: str
    summary: str
    remedy: str
    guard: str = ""
    is_below: bool = False

    def is_over(self, value: float, limit: float) -> bool:
        """Whether a value lies on the bad side of a limit."""
        return value < limit if self.is_below else value > limit

    @property
    def is_flag(self) -> bool:
        """Whether its figure is 0 or 1, so that there is no other limit."""
        return self.figure in FLAGS

    def with_limit(self, limit: float) -> Rule:
        """Return it with another limit, and the end moved along: it stays where a figure can get.

        >>> RULES["HighErrorShare"].with_limit(0.1).clear, round(RULES["LowAgreement"].with_limit(0.994).clear, 4)
        (0.05, 0.996)
        """
        if self.is_below:  # a share: there is nothing above 1
            step = (self.clear - self.limit) * min(1.0, (1.0 - limit) / (1.0 - self.limit))
            return replace(self, limit=limit, clear=limit + step)
        return replace(self, limit=limit, clear=limit * (self.clear / self.limit))


def changed(limits: Mapping[str, object]) -> Mapping[str, Rule]:
    """Return all rules, some with another limit (a number) or with another {limit, for_s}.

    Raises SchemeError for an alert that there is not, or a limit that it cannot have.
    """
    found = dict(RULES)
    for name, given in limits.items():
        if name not in RULES:
            raise SchemeError(f"limits: no alert {name!r:.60}; there are {', '.join(RULES)}")
        wanted = dict(given) if isinstance(given, Mapping) else {"limit": given}
        if not wanted or not set(wanted) <= {"limit", "for_s"}:
            raise SchemeError(f"limits.{name}: a number, or limit and for_s, are wanted, not {given!r:.60}")
        found[name] = _changed(RULES[name], wanted)
    return found


def _changed(rule: Rule, wanted: Mapping[str, object]) -> Rule:
    if "limit" in wanted:
        if rule.is_flag:
            raise SchemeError(f"limits.{rule.name}: it is so or not, without a limit; only for_s can be another")
        most = 1.0 if rule.is_below or rule.figure.endswith("_share") else 1e9
        rule = rule.with_limit(_number(f"limits.{rule.name}", wanted["limit"], most))
    if "for_s" in wanted:
        rule = replace(rule, for_s=_number(f"limits.{rule.name}.for_s", wanted["for_s"], MOST_FOR_S))
    return rule


def _number(place: str, value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SchemeError(f"{place}: a number is wanted, not {value!r:.40}")
    if not 0 <= value <= most:
        raise SchemeError(f"{place}: from 0 to {most:g}, not {value:g}")
    return value


def _drift(side: str) -> str:
    return f'max by (job, instance, model, variant) (tersor_drift_alarm{{side="{side}"}})'


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
            "An engine was loaded again and again in 15 minutes",
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
            "Requests get no answer",
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
            "The fallback answers for the quantized variant",
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
            f"histogram_quantile(0.99, {_BY_STEP} (rate(tersor_request_seconds_bucket[5m])))",
            "One answer in a hundred is slow",
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
            "Too few answers agree with full precision",
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
            "Too few of the labelled answers are right",
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
            "tersor_engine_memory_bytes / on (job, instance) group_left () tersor_machine_memory_bytes",
            "An engine holds most of the machine's memory",
            "lower slots or context, or quantize with fewer bits",
        ),
    )
}
"""Name → rule, as it is where a deployment says nothing else."""
