"""`tersor alerts` as one call: the alerts of a deployment, and the files that bring them to Prometheus and Grafana."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tersor.deploy.alerting.files import monitoring_files
from tersor.deploy.alerting.rules import RULES, Rule
from tersor.deploy.config import read_deployment
from tersor.files.atomic import atomic_set

__all__ = ["alerts", "write_alerts"]


def alerts(deployment: Path | None = None) -> Mapping[str, Rule]:
    """Return every alert by its name, with the limits of a deployment; raises what `read_deployment` raises."""
    return RULES if deployment is None else read_deployment(deployment).monitor.rules


def write_alerts(folder: Path, rules: Mapping[str, Rule]) -> Sequence[Path]:
    """Write rules, their tests and a dashboard into a folder, made if it is not there, and return their paths.

    Raises SchemeError for a limit that Prometheus cannot see; then nothing is written.
    """
    texts = monitoring_files(rules)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_set(folder) as files:
        for name, text in texts.items():
            files.open(name).write(text.encode())
    return [folder / name for name in texts]
