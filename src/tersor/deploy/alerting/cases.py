"""Tests of the rules for `promtool test rules`: each fires when it should and is silent when it should be.

They follow from the rules, whatever their limits: a figure is bad, then better than the limit but not past where the
alert ends, then good.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tersor.deploy.alerting.prometheus import can_fire, texts
from tersor.deploy.alerting.rules import LEAST_REQUESTS, WINDOW_S, Rule

__all__ = ["tests_file"]

LABELS = {"job": "tersor", "instance": "gateway:8470", "model": "chat", "variant": "quantized"}
A_MINUTE = 600
"""Requests, so that there are enough."""
MACHINE = 64_000_000_000
ABOVE_WINDOW = 20
"""Minutes that a phase lasts beyond its for-duration: longer than any rate looks back."""
Level: TypeAlias = Literal["bad", "between", "good"]


@dataclass(frozen=True, slots=True)
class Series:
    """A series at one level: a gauge's value, or what a counter adds each minute."""

    name: str
    amount: float
    is_counter: bool = False


def _shares(failed: float = 0.0, fell_back: float = 0.0) -> list[Series]:
    """All requests of a minute by what became of them."""
    answered = (1 - failed - fell_back) * A_MINUTE
    return [
        Series(_of("tersor_requests_total", code="200"), answered, is_counter=True),
        Series(_of("tersor_failed_total"), failed * A_MINUTE, is_counter=True),
        Series(_of("tersor_fell_back_total"), fell_back * A_MINUTE, is_counter=True),
    ]


def _latencies(rule: Rule, level: Level) -> list[Series]:
    """All answers in one step of the histogram; its bounds are where the rule begins and ends."""
    bounds = (rule.clear, rule.limit, 2 * rule.limit)
    step = ("good", "between", "bad").index(level)
    counts = [A_MINUTE if number >= step else 0 for number in range(len(bounds))]
    rows = [(f"{bound:.10g}", count) for bound, count in zip(bounds, counts, strict=True)]
    name = "tersor_request_seconds_bucket"
    steps = [Series(_of(name, le=bound), count, is_counter=True) for bound, count in [*rows, ("+Inf", A_MINUTE)]]
    return [*_shares(), *steps]


def _of(name: str, **more: str) -> str:
    labels = ", ".join(f'{label}="{value}"' for label, value in {**LABELS, **more}.items())
    return f"{name}{{{labels}}}"


MACHINE_MEMORY = 'tersor_machine_memory_bytes{job="tersor", instance="gateway:8470"}'
SERIES: Mapping[str, Callable[[float], list[Series]]] = {
    "engine_down": lambda value: [Series(_of("tersor_engine_ready"), 1 - value)],
    "restarts": lambda value: [Series(_of("tersor_engine_starts_total"), value / 15, is_counter=True)],
    "error_share": lambda value: _shares(failed=value),
    "fallback_share": lambda value: _shares(fell_back=value),
    "agreement": lambda value: [Series(_of("tersor_agreement_ratio"), value)],
    "accuracy": lambda value: [Series(_of("tersor_accuracy_ratio"), value)],
    "input_drift": lambda value: [Series(_of("tersor_drift_alarm", side="input"), value)],
    "output_drift": lambda value: [Series(_of("tersor_drift_alarm", side="output"), value)],
    "memory_share": lambda value: [
        Series(_of("tersor_engine_memory_bytes"), value * MACHINE),
        Series(MACHINE_MEMORY, MACHINE),
    ],
}
"""Figure → what Prometheus sees where it has a value."""


def tests_file(rules: Iterable[Rule], rules_name: str) -> str:
    """Return the tests in YAML; `rules_name` names the file of the rules."""
    lines = ["# Written by `tersor alerts`, with the rules that they test: do not edit.", ""]
    lines += ["rule_files:", f"  - {rules_name}", "evaluation_interval: 1m", "tests:"]
    for rule in rules:
        if can_fire(rule):
            lines += [line for case in _cases(rule) for line in case]
    return "\n".join(lines) + "\n"


def _cases(rule: Rule) -> Iterable[list[str]]:
    has_between = rule.clear != rule.limit
    phases: list[Level] = ["bad", "between", "good"] if has_between else ["bad", "good"]
    minutes = math.ceil(rule.for_s / 60) + ABOVE_WINDOW
    series = [_series(rule, level) for level in phases]
    checks: list[tuple[float, str | None]] = [(rule.for_s // 120, None)] if rule.for_s >= 120 else []
    checks.append((minutes - 1, _shown(rule, "bad")))
    if has_between:
        checks.append((2 * minutes - 1, _shown(rule, "between")))
    checks.append((len(phases) * minutes - 1, None))
    past = ", and goes on until it is past its end" if has_between else ""
    yield _case(rule, f"fires{past}", series, minutes, checks)
    for level in phases[1:]:
        words = "is silent" if level == "good" else "is silent below its limit"
        yield _case(rule, words, [_series(rule, level)], minutes, [(minutes - 1, None)])
    if rule.guard:
        few = LEAST_REQUESTS / 2 / (WINDOW_S / 60) / A_MINUTE
        scarce = [[Series(one.name, one.amount * few, one.is_counter) for one in _series(rule, "bad")]]
        yield _case(rule, "is silent of too few requests", scarce, minutes, [(minutes - 1, None)])


def _value(rule: Rule, level: Level) -> float:
    """A figure at a level."""
    if rule.is_flag:
        return 1.0 if level == "bad" else 0.0
    if level == "between":
        return (rule.limit + rule.clear) / 2
    if rule.is_below:
        return rule.limit * 0.9 if level == "bad" else (rule.clear + 1) / 2
    if level == "good":
        return rule.clear / 2
    return (rule.limit + 1) / 2 if rule.figure.endswith("_share") else 2 * rule.limit


def _series(rule: Rule, level: Level) -> list[Series]:
    return _latencies(rule, level) if rule.figure == "latency_p99_s" else SERIES[rule.figure](_value(rule, level))


def _shown(rule: Rule, level: Level) -> str:
    """The value as the alert tells it."""
    value = _value(rule, level)
    if rule.figure == "latency_p99_s":  # of the answers in a step, 99 % of its width
        below, above = (rule.limit, 2 * rule.limit) if level == "bad" else (rule.clear, rule.limit)
        value = below + 0.99 * (above - below)
    return f"{value:.4g}"


def _case(
    rule: Rule, words: str, phases: Sequence[list[Series]], minutes: int, checks: Iterable[tuple[float, str | None]]
) -> list[str]:
    lines = [f"  - name: {json.dumps(f'{rule.name} {words}')}", "    interval: 1m", "    input_series:"]
    for number, one in enumerate(phases[0]):
        amounts = [phase[number].amount for phase in phases]
        lines += [f"      - series: {_quoted(one.name)}"]
        lines += [f"        values: {_quoted(_values(amounts, minutes, is_counter=one.is_counter))}"]
    lines += ["    alert_rule_test:"]
    for minute, shown in checks:
        lines += [f"      - eval_time: {minute:g}m", f"        alertname: {rule.name}"]
        if shown is None:
            lines += ["        exp_alerts: []"]
            continue
        lines += ["        exp_alerts:", "          - exp_labels:", f"              severity: {rule.severity}"]
        lines += [f"              {label}: {json.dumps(value)}" for label, value in LABELS.items()]
        lines += ["            exp_annotations:"]
        lines += [f"              {name}: {_filled(text, shown)}" for name, text in texts(rule).items()]
    return lines


def _values(amounts: Sequence[float], minutes: int, *, is_counter: bool) -> str:
    parts, total = [], 0.0
    for amount in amounts:
        if is_counter:
            parts.append(f"{total + amount:.10g}+{amount:.10g}x{minutes - 1}")
            total += amount * minutes
        else:
            parts.append(f"{amount:.10g}+0x{minutes - 1}")
    return " ".join(parts)


def _filled(text: str, shown: str) -> str:
    for label, value in LABELS.items():
        text = text.replace(f"{{{{ $labels.{label} }}}}", value)
    return json.dumps(text.replace('{{ printf "%.4g" $value }}', shown))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
