"""Everything that a report is made from, read while the gateway runs or after it has ended; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tersor.core.errors import TersorError
from tersor.deploy.config import Deployment
from tersor.deploy.gateway.operating.audit import Line, last_lines, last_noted
from tersor.deploy.gateway.operating.records import rollouts_of
from tersor.deploy.gateway.recording.incidents import CAUSES, DRIFT
from tersor.deploy.gateway.recording.recorder import Record
from tersor.deploy.gateway.recording.store import Happening, read_cells, read_document, read_happenings
from tersor.deploy.gateway.rolling.keeping import RolloutFile
from tersor.deploy.gateway.rolling.progress import Progress
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import GateVerdict, Interval, Override

__all__ = ["Evidence", "Registered", "read_evidence"]

T = TypeVar("T")
MOST_LINES = 500
"""Of the audit log."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registry tells of one model: what served when, and of each artefact all verdicts and overrides."""

    history: tuple[Interval, ...] = ()
    verdicts: Mapping[str, tuple[GateVerdict, ...]] = field(default_factory=dict)
    overrides: Mapping[str, tuple[Override, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read.

    records     model, variant → what was counted
    causes      see `recording.incidents`
    lines       of the audit log, the latest first
    registered  by model; empty where the deployment has no registry
    problems    what could not be read, and why: the report says so, and tells the rest
    """

    records: Mapping[tuple[str, str], Record]
    happenings: tuple[Happening, ...]
    causes: Mapping[str, Any]
    drift: tuple[Mapping[str, Any], ...]
    alerts: tuple[Mapping[str, Any], ...]
    rollouts: Mapping[str, Progress]
    lines: tuple[Line, ...]
    registered: Mapping[str, Registered]
    problems: tuple[str, ...]


def read_evidence(deployment: Deployment) -> Evidence:
    """Read the record, the file of rollouts, the audit log and the registry of a deployment."""
    problems: list[str] = []
    record, audit = Path(deployment.record), Path(deployment.audit)
    if not record.exists():
        problems.append(f"{record.name}: there is no record; a gateway writes it a minute after it began")

    def tried(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except TersorError as error:
            problems.append(str(error).split("\n", maxsplit=1)[0])
            return otherwise

    causes = tried(lambda: read_document(record, CAUSES), None)
    nothing: tuple[dict[str, Registered], tuple[Line, ...]] = ({}, ())
    registered, lines = tried(
        lambda: _registered(deployment) if deployment.registry else ({}, last_lines(audit, MOST_LINES)), nothing
    )
    return Evidence(
        tried(lambda: read_cells(record), {}),
        tuple(tried(lambda: read_happenings(record), [])),
        causes if isinstance(causes, dict) else {},
        _objects(tried(lambda: read_document(record, DRIFT), None)),
        _objects(tried(lambda: read_document(record, "alerts"), None)),
        tried(lambda: _rollouts(audit, deployment), {}),
        lines,
        registered,
        tuple(dict.fromkeys(problems)),
    )


def _objects(found: object) -> tuple[Mapping[str, Any], ...]:
    return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def _rollouts(audit: Path, deployment: Deployment) -> dict[str, Progress]:
    file = RolloutFile(rollouts_of(audit))
    return {name: now for name in deployment.models if (now := file.read(name)) is not None}


def _registered(deployment: Deployment) -> tuple[dict[str, Registered], tuple[Line, ...]]:
    with Registry.open(Path(deployment.registry)) as registry:
        known = {row.name for row in registry.deployments()}
        found = {}
        for name in known & set(deployment.models):
            history = registry.history(name)
            rows = [one.deployment for one in history]
            labels = dict.fromkeys(label for row in rows for label in (row.artefact, row.candidate) if label)
            found[name] = Registered(
                history,
                {label: registry.verdicts(label) for label in labels},
                {label: registry.overrides(label) for label in labels},
            )
        return found, last_noted(registry, MOST_LINES)
