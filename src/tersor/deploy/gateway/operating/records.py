"""What outlives a gateway: what serves since when, what was rolled back, and the audit log.

A registry keeps all of it. Without one, a file of JSON lines keeps the log, and one beside it what was rolled back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tersor.core.errors import MissingError
from tersor.core.records import from_json_text, plain, read_record, to_json_text
from tersor.deploy.config import Deployment, ModelPlan
from tersor.deploy.gateway.operating.audit import (
    Author,
    Entry,
    Line,
    append_line,
    last_lines,
    last_noted,
    note_entry,
)
from tersor.deploy.gateway.operating.standing import Inspector, Standing, Standings
from tersor.deploy.gateway.rolling.keeping import RolloutFile
from tersor.deploy.gateway.rolling.progress import Progress
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.texts import timestamp
from tersor.files.atomic import atomic_writer

__all__ = ["Labels", "Records", "Since", "opened", "rollouts_of"]


@dataclass(frozen=True, slots=True)
class Since:
    """When something began, whose order that was, and why."""

    at: str
    who: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a registry calls the artefacts of a rollout; `fallback` is empty where there is none."""

    primary: str
    candidate: str
    fallback: str


class Records(Protocol):
    """What a gateway writes down; calls block, and what they were given is on the disk when they return."""

    def standings(self, name: str, plan: ModelPlan) -> Standings:
        """Return what is known of the variants of a model; QualityError or MissingError where they may not serve."""
        ...

    def is_rolled_back(self, name: str, plan: ModelPlan, standings: Standings) -> bool:
        """Whether the primary of a model was rolled back, and nobody restored it since."""
        ...

    def answers(
        self, name: str, plan: ModelPlan, standings: Standings, *, is_rolled_back: bool, author: Author, why: str
    ) -> Since:
        """Write down that the primary answers, or the fallback where `is_rolled_back`; return since when that is so."""
        ...

    def ended(self, name: str, author: Author, why: str) -> None:
        """Write down that nothing answers under a name."""
        ...

    def candidate(self, name: str, plan: ModelPlan) -> Standing | None:
        """Return what is known of a model's candidate, if anything is; raises as `standings` does."""
        ...

    def rollout(self, name: str) -> Progress | None:
        """Return how far the rollout of a model is; None where none was ever begun."""
        ...

    def keep_rollout(self, name: str, now: Progress, weight: float, labels: Labels | None) -> None:
        """Write down how far it is.

        weight  share of requests that the candidate answers
        labels  of what the registry knows, where it knows it
        """
        ...

    def write(self, entry: Entry) -> None:
        """Add a line to the audit log."""
        ...

    def last(self, most: int) -> tuple[Line, ...]:
        """Return the last lines of the audit log, the latest first; MissingError or FormatError."""
        ...


@dataclass(frozen=True, slots=True)
class _Left:
    """A primary that was rolled back: the variant, its artefact, and who did it."""

    variant: str
    artefact: str
    since: Since


@dataclass(frozen=True, slots=True)
class _State:
    schema: str = "tersor.rolled-back/1"
    models: Mapping[str, _Left] = field(default_factory=dict)


class _Files:
    """Records without a registry; they change nothing until there is something to keep."""

    def __init__(self, audit: Path) -> None:
        self._audit = audit
        stem = audit.name.split(".")[0]
        self._path = audit.with_name(f"{stem}.rolled-back.json")
        self._rollouts = RolloutFile(rollouts_of(audit))
        self._state = _State()
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            self._state = read_record(_State, from_json_text(text, str(self._path)), str(self._path))

    def standings(self, name: str, plan: ModelPlan) -> Standings:
        del name, plan
        return {}

    def is_rolled_back(self, name: str, plan: ModelPlan, standings: Standings) -> bool:
        del standings
        left = self._state.models.get(name)
        return left is not None and (left.variant, left.artefact) == self._primary(plan)

    def answers(
        self, name: str, plan: ModelPlan, standings: Standings, *, is_rolled_back: bool, author: Author, why: str
    ) -> Since:
        was = self.is_rolled_back(name, plan, standings)
        if is_rolled_back and was:
            return self._state.models[name].since
        since = Since(_now(), author.who, why)
        if is_rolled_back:
            self._keep({**self._state.models, name: _Left(*self._primary(plan), since)})
        elif was:
            self._keep({other: left for other, left in self._state.models.items() if other != name})
        return since

    def ended(self, name: str, author: Author, why: str) -> None:
        """Nothing: what is unloaded is so until the next start."""

    def candidate(self, name: str, plan: ModelPlan) -> None:
        del name, plan

    def rollout(self, name: str) -> Progress | None:
        return self._rollouts.read(name)

    def keep_rollout(self, name: str, now: Progress, weight: float, labels: Labels | None) -> None:
        del weight, labels
        self._rollouts.keep(name, now)

    def write(self, entry: Entry) -> None:
        append_line(self._audit, entry)

    def last(self, most: int) -> tuple[Line, ...]:
        return last_lines(self._audit, most)

    def _primary(self, plan: ModelPlan) -> tuple[str, str]:
        variant = plan.variants[plan.primary]
        place = "" if variant.embedded else os.path.relpath(variant.path, self._path.parent)
        return plan.primary, variant.embedded or place

    def _keep(self, models: Mapping[str, _Left]) -> None:
        made = replace(self._state, models=models)
        try:
            with atomic_writer(self._path) as file:
                file.write(to_json_text(plain(made)).encode())
        except OSError as error:
            raise MissingError(f"{self._path}: cannot be written ({error.strerror}), so nothing was changed") from error
        self._state = made


class _Registered:
    """Records in a registry; `files` keeps rollbacks to what no registry can know, a model on another server."""

    def __init__(self, registry: Registry, folder: Path, files: _Files) -> None:
        self._registry, self._inspector, self._files = registry, Inspector(registry, folder), files

    def standings(self, name: str, plan: ModelPlan) -> Standings:
        return self._inspector.standings(name, plan)

    def is_rolled_back(self, name: str, plan: ModelPlan, standings: Standings) -> bool:
        if plan.fallback is not None and plan.fallback not in standings:
            return self._files.is_rolled_back(name, plan, standings)
        left = self._registry.rolled_back_from(name)
        # What was left may be a candidate that had been promoted: no deployment has named another primary since.
        return left is not None and (
            left == standings[plan.primary].label or left == self._inspector.label(plan, plan.candidate)
        )

    def answers(
        self, name: str, plan: ModelPlan, standings: Standings, *, is_rolled_back: bool, author: Author, why: str
    ) -> Since:
        primary = standings[plan.primary].label
        fallback = standings[plan.fallback].label if plan.fallback in standings and plan.fallback else ""
        if is_rolled_back and not fallback:
            since = self._files.answers(name, plan, standings, is_rolled_back=True, author=author, why=why)
            self._registry.undeploy(name, who=author.who, why=why)
            return since
        if is_rolled_back:
            row = self._registry.rollback(name, to=fallback, who=author.who, why=why)
        else:
            row = self._registry.deploy(name, primary, fallback, who=author.who, why=why, is_hashed=True)
            self._files.answers(name, plan, standings, is_rolled_back=False, author=author, why=why)
        return Since(row.since, row.who, row.why)

    def ended(self, name: str, author: Author, why: str) -> None:
        self._registry.undeploy(name, who=author.who, why=why)

    def candidate(self, name: str, plan: ModelPlan) -> Standing | None:
        return self._inspector.candidate(name, plan)

    def rollout(self, name: str) -> Progress | None:
        return self._files.rollout(name)

    def keep_rollout(self, name: str, now: Progress, weight: float, labels: Labels | None) -> None:
        """The file is what a gateway resumes from; the registry follows it, and is brought in line when that is read
        again, for both cannot be written in one stroke."""
        self._files.keep_rollout(name, now, weight, labels)
        if labels is not None and now.history:
            self._follow(name, now, weight, labels)

    def _follow(self, name: str, now: Progress, weight: float, labels: Labels) -> None:
        registry, who, why = self._registry, now.history[-1].who, now.history[-1].why
        serving = registry.serving(name)
        if serving is None:
            return
        if now.state == "shadow" or now.state == "canary" or now.state == "paused":  # noqa: PLR1714 (mypy sees so)
            if serving.artefact == labels.primary:
                registry.shift(name, labels.candidate, state=now.state, weight=weight, who=who, why=why)
        elif now.state == "promoted":
            if registry.rolled_back_from(name) is not None:
                return  # the fallback answers, whatever was promoted before
            registry.deploy(name, labels.candidate, labels.fallback, who=who, why=why, is_hashed=True)
        elif labels.candidate in (serving.artefact, serving.candidate):
            registry.deploy(name, labels.primary, labels.fallback, who=who, why=why, is_hashed=True)

    def write(self, entry: Entry) -> None:
        note_entry(self._registry, entry)

    def last(self, most: int) -> tuple[Line, ...]:
        return last_noted(self._registry, most)


@contextlib.contextmanager
def opened(deployment: Deployment) -> Iterator[Records]:
    """Yield the records of a deployment; MissingError where its registry is not there."""
    files = _Files(Path(deployment.audit))
    if not deployment.registry:
        yield files
        return
    folder = Path(deployment.registry)
    with Registry.open(folder, mode="write") as registry:
        yield _Registered(registry, folder, files)


def rollouts_of(audit: Path) -> Path:
    """Return the file of rollouts that lies beside an audit log."""
    return audit.with_name(f"{audit.name.split('.')[0]}.rollouts.json")


def _now() -> str:
    return timestamp(datetime.now(UTC))
