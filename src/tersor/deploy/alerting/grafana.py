"""A dashboard for Grafana: a table of panels, written as the JSON that Grafana imports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PANELS", "Panel", "dashboard_file"]

CHOSEN = 'job=~"$job", model=~"$model"'
NAMED = "{{model}}/{{variant}}"
WIDTH, HEIGHT = 8, 8
"""Of a panel; the dashboard is 24 wide."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    unit     as Grafana calls it
    queries  legend → PromQL, in which CHOSEN stands for what is chosen above
    most     upper end of the axis; None: what there is
    """

    title: str
    unit: str
    queries: Mapping[str, str]
    about: str
    most: float | None = None


def _rate(name: str, by: str = "model, variant") -> str:
    return f"sum by ({by}) (rate({name}{{{CHOSEN}}}[5m]))"


def _quantiles(name: str, *shares: float) -> dict[str, str]:
    rate = f"sum by (model, variant, le) (rate({name}_bucket{{{CHOSEN}}}[5m]))"
    return {f"p{share * 100:g} {NAMED}": f"histogram_quantile({share:g}, {rate})" for share in shares}


def _gauge(name: str) -> str:
    return f"{name}{{{CHOSEN}}}"


def _share(name: str) -> str:
    asked = " + ".join(map(_rate, ("tersor_requests_total", "tersor_failed_total", "tersor_fell_back_total")))
    return f"{_rate(name)} / ({asked})"


PANELS = (
    Panel(
        "Alerts that fire", "none", {f"{{{{alert}}}} {NAMED}": _gauge("tersor_alerts_firing") + " == 1"},
        "Of the gateway's own.", 1,
    ),
    Panel("Engines that answer", "none", {NAMED: _gauge("tersor_engine_ready")}, "1: it answers.", 1),
    Panel("Engine loads", "short", {NAMED: f"increase({_gauge('tersor_engine_starts_total')}[15m])"}, "In 15 minutes."),
    Panel("Latency", "s", _quantiles("tersor_request_seconds", 0.5, 0.95, 0.99), "Until the end of an answer."),
    Panel("First part", "s", _quantiles("tersor_first_part_seconds", 0.5, 0.95), "Until the first token of a stream."),
    Panel("In flight", "short", {"{{model}}": _gauge("tersor_in_flight_requests")}, "Requests being answered."),
    Panel("Throughput", "reqps", {NAMED: _rate("tersor_requests_total")}, "Answers a second."),
    Panel("Tokens", "short", {NAMED: _rate("tersor_generated_tokens_total")}, "Generated a second."),
    Panel(
        "Memory", "bytes",
        {NAMED: _gauge("tersor_engine_memory_bytes"), "machine": 'tersor_machine_memory_bytes{job=~"$job"}'},
        "Resident, by engine.",
    ),
    Panel("Errors", "percentunit", {NAMED: _share("tersor_failed_total")}, "Requests that nobody answered.", 1),
    Panel("Fallbacks", "percentunit", {NAMED: _share("tersor_fell_back_total")}, "That the fallback answered.", 1),
    Panel(
        "Why", "reqps",
        {
            "{{model}}: {{reason}}": _rate("tersor_fallbacks_total", "model, reason"),
            f"{NAMED} {{{{sentinel}}}}": _rate("tersor_findings_total", "model, variant, sentinel"),
            "refused: {{reason}}": 'sum by (reason) (rate(tersor_refused_total{job=~"$job"}[5m]))',
        },
        "Reasons of fallbacks, what sentinels found, and what was refused before any engine.",
    ),
    Panel(
        "Agreement", "percentunit",
        {NAMED: _gauge("tersor_agreement_ratio"), f"full itself {NAMED}": _gauge("tersor_agreement_floor_ratio")},
        "With full precision, last hour, and of full precision with itself.", 1,
    ),
    Panel(
        "Distance", "short", {NAMED: _gauge("tersor_reference_distance")},
        "From full precision beyond its own: relative norm of tensors, nats of tokens.",
    ),
    Panel(
        "Accuracy", "percentunit",
        {
            f"labelled {NAMED}": _gauge("tersor_accuracy_ratio"),
            f"estimated, {{{{end}}}} {NAMED}": _gauge("tersor_estimated_accuracy_ratio"),
        },
        "Labelled answers of the last hour; without labels by calibrated confidence.", 1,
    ),
    Panel(
        "Activations clipped", "percentunit",
        {f"{{{{layer}}}} {NAMED}": _gauge("tersor_clipped_activations_ratio")},
        "Beyond the range of their quantizer, by layer, last window.",
    ),
    Panel(
        "Shadow", "reqps",
        {
            f"compared {NAMED}": _rate("tersor_shadow_compared_total"),
            f"agreed {NAMED}": _rate("tersor_shadow_agreed_total"),
            f"dropped {NAMED} {{{{reason}}}}": _rate("tersor_shadow_dropped_total", "model, variant, reason"),
        },
        "Answers of a rollout that were compared with full precision.",
    ),
    Panel(
        "Drift", "short",
        {f"{{{{side}}}} {{{{feature}}}} {NAMED}": _gauge("tersor_drift_nats")},
        "Jensen-Shannon divergence of the last window, nats.",
    ),
    Panel("Drift alarms", "none", {f"{{{{side}}}} {NAMED}": _gauge("tersor_drift_alarm")}, "1: it drifted.", 1),
    Panel(
        "Batches of nets", "short",
        {NAMED: f"{_rate('tersor_batch_requests_sum')} / {_rate('tersor_batch_requests_count')}"},
        "Requests in one call.",
    ),
    Panel("Rollout weight", "percentunit", {NAMED: _gauge("tersor_rollout_weight")}, "Share of the candidate.", 1),
    Panel(
        "Rollout tests", "none",
        {f"{{{{test}}}} {{{{boundary}}}} {NAMED}": _gauge("tersor_rollout_test_nearness")},
        "How near to saying safe or harmful; 1: it says so.", 1,
    ),
    Panel(
        "Rollout", "short",
        {
            f"{{{{state}}}} {NAMED}": f"increase({_gauge('tersor_rollout_moves_total')}[15m])",
            f"{{{{outcome}}}} {NAMED}": f"increase({_gauge('tersor_rollout_requests_total')}[15m])",
        },
        "Moves, and requests by outcome, in 15 minutes.",
    ),
)  # fmt: skip
"""All panels, three in a row."""


def dashboard_file(panels: Iterable[Panel] = PANELS) -> str:
    """Return the dashboard; Grafana asks for the data source when it is imported, or later above the panels."""
    document = {
        "title": "tersor", "uid": "tersor-gateway", "tags": ["tersor"], "schemaVersion": 39, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source(), _choice("job"), _choice("model")]},
        "annotations": {"list": []},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"}


def _choice(label: str) -> dict[str, Any]:
    query = f"label_values(tersor_engine_ready, {label})"
    return {
        "name": label, "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": label}, "refresh": 2, "sort": 1,
        "includeAll": True, "multi": True, "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": source, "expr": expr, "legendFormat": legend, "range": True}
        for index, (legend, expr) in enumerate(panel.queries.items())
    ]
    limits: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        limits["max"] = panel.most
    return {
        "id": number + 1, "type": "timeseries", "title": panel.title, "description": panel.about,
        "datasource": source, "targets": targets,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": number % 3 * WIDTH, "y": number // 3 * HEIGHT},
        "fieldConfig": {"defaults": limits, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }  # fmt: skip
