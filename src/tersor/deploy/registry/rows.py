"""The rows of a registry, as they are handed out: small, frozen, and named for what they say.

Artefacts are called by their label, NAME:VERSION. Times are UTC, as `texts.timestamp` writes them. `id` rises with
every row, so that rows are in the order in which they were committed, whatever the clock said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tersor.core.evaluation import Outcome
from tersor.deploy.registry.texts import seconds_between

__all__ = [
    "KINDS",
    "Action",
    "Deployment",
    "Difference",
    "Event",
    "GateVerdict",
    "Interval",
    "Kind",
    "ManifestFile",
    "Note",
    "Override",
    "RegisteredArtefact",
    "State",
]

Kind: TypeAlias = Literal["gguf", "checkpoint", "onnx", "torch"]
KINDS: tuple[Kind, ...] = ("gguf", "checkpoint", "onnx", "torch")

Action: TypeAlias = Literal["deploy", "shift", "rollback", "undeploy"]

State: TypeAlias = Literal["serving", "shadow", "canary", "paused", "stopped"]
"""serving: the primary alone. shadow, canary, paused: a candidate stands beside it. stopped: nothing serves."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of an artefact: its path below the artefact's own folder, in POSIX spelling."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RegisteredArtefact:
    """One version of an artefact; it never changes.

    path         below the folder of the registry, or absolute where it was registered so; POSIX spelling
    is_absolute  1 where `path` is absolute, else 0
    files        every file of it, in the order of their paths
    sha256       of the manifest, so of everything
    baseline     label of the full-precision artefact that it is compared with; None where it is one itself
    """

    id: int
    name: str
    version: int
    kind: Kind
    path: str
    is_absolute: int
    files: tuple[ManifestFile, ...]
    nbytes: int
    sha256: str
    baseline: str | None
    added: str
    who: str

    @property
    def label(self) -> str:
        """What it is called: NAME:VERSION."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that is not what the manifest says, and in what."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What a gate found about an artefact; `document` is what it measured."""

    id: int
    artefact: str
    at: str
    who: str
    outcome: Outcome
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Override:
    """Somebody's word that an artefact may serve all the same.

    It covers one verdict (None: that there is none) and no later one.
    """

    id: int
    artefact: str
    verdict: int | None
    at: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """What stands under a name since one transition.

    id         of the transition
    artefact   the primary
    fallback   the full-precision artefact that answers where the primary may not; None where there is none
    candidate  what is tried beside the primary; None in the states serving and stopped
    weight     share of requests that the candidate answers, 0 … 1
    before     id of the last transition after which one artefact served alone before; None where none did
    """

    id: int
    name: str
    action: Action
    state: State
    artefact: str
    fallback: str | None
    candidate: str | None
    weight: float
    before: int | None
    since: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Interval:
    """What served from one transition to the next; `until` is None while it serves."""

    deployment: Deployment
    until: str | None

    @property
    def seconds(self) -> float | None:
        """How long by the clock; None while it lasts, and where the clock was set back meanwhile."""
        if self.until is None:
            return None
        seconds = seconds_between(self.deployment.since, self.until)
        return seconds if seconds >= 0 else None


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened and decides nothing: `what` in a few words, `subject` the name that it is about."""

    what: str
    subject: str
    who: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log."""

    id: int
    at: str
    who: str
    what: str
    subject: str
    details: Mapping[str, Any]
