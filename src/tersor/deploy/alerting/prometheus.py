"""The same alerts as rules for Prometheus: its `for`, and hysteresis by asking it what fires already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tersor.core.errors import SchemeError
from tersor.deploy.alerting.rules import Rule

__all__ = ["LONGEST_S", "can_fire", "rules_file", "texts"]

ABOUT = "job, instance, model, variant"
"""Labels that an alert is about: each gateway judges for itself."""
LONGEST_S = 60.0
"""Times beyond are in the last step of the gateway's histograms: Prometheus cannot tell them apart."""
HEAD = """\
# The alerts of tersor, written by `tersor alerts`: do not edit.
# promtool test rules {tests}
"""


def rules_file(rules: Iterable[Rule], tests: str) -> str:
    """Return the rules in YAML; `tests` names the file of their tests.

    Raises SchemeError for a limit that Prometheus cannot see.
    """
    lines = [HEAD.format(tests=tests), "groups:", "  - name: tersor", "    rules:"]
    for rule in rules:
        if not can_fire(rule):
            continue
        if rule.figure.endswith("_s") and rule.limit >= LONGEST_S:
            raise SchemeError(f"limits.{rule.name}: Prometheus counts times up to {LONGEST_S:g} s, not {rule.limit:g}")
        lines += [f"      - alert: {rule.name}", "        expr: |"]
        lines += [f"          {line}" for line in _expression(rule)]
        if rule.for_s:  # parts of a second are no duration there
            whole = f"{rule.for_s:.0f}s" if rule.for_s == int(rule.for_s) else f"{round(rule.for_s * 1000)}ms"
            lines += [f"        for: {whole}"]
        lines += ["        labels:", f"          severity: {rule.severity}", "        annotations:"]
        lines += [f"          {name}: {json.dumps(text)}" for name, text in texts(rule).items()]
    return "\n".join(lines) + "\n"


def can_fire(rule: Rule) -> bool:
    """Whether a figure can lie beyond its limit: a share of 1 is one way to say never."""
    if rule.is_below:
        return rule.limit > 0
    return not rule.figure.endswith("_share") or rule.limit < 1


def texts(rule: Rule) -> Mapping[str, str]:
    """Return what is told of it, in Prometheus' templates."""
    word = "below" if rule.is_below else "above"
    value = '{{ printf "%.4g" $value }}'
    about = "{{ $labels.model }}/{{ $labels.variant }}"
    return {
        "summary": rule.summary,
        "description": f"{about}: {rule.figure} is {value}, {word} {rule.limit:.4g}; {rule.remedy}",
    }


def _expression(rule: Rule) -> list[str]:
    side = "<" if rule.is_below else ">"
    beyond = f"({rule.expr}) {side} {rule.limit:.10g}"
    if rule.clear == rule.limit:
        made = [beyond]
    else:
        fires = f'ALERTS{{alertname="{rule.name}", alertstate="firing"}}'
        still = f"({rule.expr}) {side} {rule.clear:.10g}"
        made = [beyond, "or", f"({still}) and on ({ABOUT}) {fires}"]
    if rule.guard:
        made = ["(", *(f"  {line}" for line in made), f") and on ({ABOUT}) ({rule.guard})"]
    return made
