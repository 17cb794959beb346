"""The files that bring the alerts and figures of a gateway to Prometheus and Grafana."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.deploy.alerting.cases import tests_file
from tersor.deploy.alerting.grafana import dashboard_file
from tersor.deploy.alerting.prometheus import rules_file
from tersor.deploy.alerting.rules import RULES, Rule

__all__ = ["DASHBOARD", "RULES_FILE", "TESTS", "monitoring_files"]

RULES_FILE, TESTS, DASHBOARD = "tersor-alerts.yml", "tersor-alerts-tests.yml", "tersor-grafana.json"


def monitoring_files(rules: Mapping[str, Rule] = RULES) -> Mapping[str, str]:
    """Return name → text of rules, their tests and dashboard; SchemeError for a limit that Prometheus cannot see."""
    return {
        RULES_FILE: rules_file(rules.values(), TESTS),
        TESTS: tests_file(rules.values(), RULES_FILE),
        DASHBOARD: dashboard_file(),
    }
