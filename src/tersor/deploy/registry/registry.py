"""The registry: artefacts with their hashes, verdicts and overrides, and what serves under which name since when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tersor.core.card import Card
from tersor.core.evaluation import Outcome
from tersor.deploy.registry import catalogue, deployments, gate, transitions
from tersor.deploy.registry.database import Database, Mode
from tersor.deploy.registry.ledger import Clock, Ledger
from tersor.deploy.registry.manifest import Contents
from tersor.deploy.registry.rows import (
    Deployment,
    Difference,
    Event,
    GateVerdict,
    Interval,
    Note,
    Override,
    RegisteredArtefact,
    State,
)
from tersor.files.closing import Closing

__all__ = ["Registry"]

WAIT_S = 5.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Registry(Closing):
    """One folder with `registry.db`, and usually with the artefacts below it.

    Artefacts are called NAME, which means the newest version, or NAME:VERSION. Every call that changes something is one
    transaction, on the disk when it returns; all but `note` are decisions, which a loss of power cannot undo. Threads
    may share a registry; a process made by fork must open its own.

    Besides what a method says, it may raise FormatError for a damaged file, MissingError for an artefact that is not
    registered, and EngineError where another process writes for too long, or the disk takes no more.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        mode: Mode = "read",
        wait_s: float = WAIT_S,
        is_exclusive: bool = False,
        clock: Clock = _utc_now,
    ) -> Self:
        """Open the registry in `folder`.

        mode          "read", "write", or "create", which begins one where there is none
        wait_s        how long a change waits for another process that writes, seconds
        is_exclusive  be the only writer until `close`; else others may write between two changes
        clock         tells the time, zone included; it may jump, for nothing is ordered by it

        Raises MissingError where there is none, SchemeError for one that a newer tersor wrote.
        """
        return cls(Ledger(Database(folder, mode, wait_s=wait_s, is_exclusive=is_exclusive), clock))

    def close(self) -> None:
        """Close the file, and let others write."""
        self._ledger.database.close()

    def add_artefact(
        self,
        name: str,
        path: Path,
        *,
        who: str,
        kind: str | None = None,
        baseline: str | None = None,
        is_absolute: bool = False,
    ) -> RegisteredArtefact:
        """Hash the artefact at `path` and register it as the next version of `name`.

        kind         gguf, checkpoint, onnx or torch; None: as its name says
        baseline     the full-precision artefact that it is compared with; None where it is full precision itself
        is_absolute  let it lie outside the folder of the registry, and remember its absolute path

        What is the newest version already is returned as it is. Raises SchemeError for a path that leaves the folder,
        MissingError where nothing lies there, FormatError for broken files and Cards.
        """
        return catalogue.add(self._ledger, name, path, who=who, kind=kind, baseline=baseline, is_absolute=is_absolute)

    def artefact(self, name: str, version: int | None = None) -> RegisteredArtefact:
        """Return one artefact; MissingError names those that there are."""
        return catalogue.find(self._ledger, name, version)

    def artefacts(self) -> tuple[RegisteredArtefact, ...]:
        """Return every version of every artefact, in the order in which they were registered."""
        return catalogue.all_artefacts(self._ledger)

    def card(self, artefact: str) -> Card | None:
        """Return the Card that lay beside an artefact when it was registered, None where there was none."""
        return catalogue.card_of(self._ledger, self.artefact(artefact))

    def path(self, artefact: str) -> Path:
        """Return where an artefact lies; SchemeError where that is outside the folder, MissingError if it is gone."""
        return catalogue.place_of(self._ledger, self.artefact(artefact))

    def verify(self, artefact: str) -> tuple[Difference, ...]:
        """Read every byte of an artefact and return each file that is not as it was registered: none if all is well."""
        return catalogue.differences_of(self._ledger, self.artefact(artefact), is_hashed=True)

    def check(self) -> None:
        """Read the whole database; FormatError says what is wrong in it."""
        self._ledger.database.check()

    def record_verdict(self, artefact: str, outcome: Outcome, document: Mapping[str, Any], *, who: str) -> GateVerdict:
        """Keep what a gate found about an artefact; `document` holds the numbers, as JSON of at most 4 MiB."""
        return gate.record_verdict(self._ledger, self.artefact(artefact), outcome, document, who)

    def verdicts(self, artefact: str) -> tuple[GateVerdict, ...]:
        """Return every verdict on an artefact, the last one last; that one counts."""
        return gate.verdicts_of(self._ledger, self.artefact(artefact))

    def override(self, artefact: str, *, who: str, why: str) -> Override:
        """Answer for an artefact that has not passed its gate, so that it may serve.

        It holds for the last verdict, or for there being none, and ends with the next one. SchemeError where the
        artefact needs none.
        """
        return gate.record_override(self._ledger, self.artefact(artefact), who, why)

    def overrides(self, artefact: str) -> tuple[Override, ...]:
        """Return every override of an artefact, the last one last."""
        return gate.overrides_of(self._ledger, self.artefact(artefact))

    def objection(self, artefact: str) -> str | None:
        """Return why an artefact may not serve, None where it may."""
        row = self.artefact(artefact)
        with self._ledger.database.reading():
            return gate.objection(row, self.verdicts(row.label), self.overrides(row.label))

    def registered(self, contents: Contents) -> RegisteredArtefact | None:
        """Return the artefact with these contents (`manifest.contents_of`), wherever they lie; None if none has them.

        One that is compared with a baseline comes before one that is not, then the newest.
        """
        return catalogue.registered(self._ledger, contents)

    def deploy(
        self,
        name: str,
        artefact: str,
        fallback: str | None = None,
        *,
        who: str,
        why: str = "",
        is_hashed: bool = False,
    ) -> Deployment:
        """Let `artefact` serve alone under `name`, and return what stands there now.

        fallback   the full-precision artefact that answers where it may not; None: its baseline; empty: nothing
        is_hashed  the caller has hashed what serves, where it lies

        Every byte of both is read before. What serves already stays as it is, so that the call can be repeated. Raises
        QualityError where the artefact has not passed its gate and nobody answers for it, FormatError where a file is
        not as it was registered, SchemeError for a fallback that is not of full precision.
        """
        return deployments.deploy(self._ledger, name, artefact, fallback, who=who, why=why, is_hashed=is_hashed)

    def shift(
        self, name: str, candidate: str, *, state: State, weight: float = 0.0, who: str, why: str = ""
    ) -> Deployment:
        """Put `candidate` beside what serves under `name`: as a shadow, as a canary, or paused.

        weight  share of requests that it answers, 0 … 1; a shadow answers none

        Can be repeated like `deploy`, raises what `deploy` raises, and SchemeError where nothing serves.
        """
        return deployments.shift(self._ledger, name, candidate, state, weight, who=who, why=why)

    def rollback(
        self, name: str, *, who: str, why: str = "", leaving: str | None = None, to: str | None = None
    ) -> Deployment:
        """Go back to what served alone before: from a candidate to the primary, else to the primary before it.

        leaving  what must serve or be tried now; with it the call can be repeated without going back twice
        to       answers alone from now on instead: the full-precision artefact that stands by, and is loaded

        Raises SchemeError where nothing served before, FormatError where its files are gone or of other sizes,
        QualityError where a gate found against it meanwhile.
        """
        if to is not None:
            return deployments.roll_back_to(self._ledger, name, to, who=who, why=why)
        return deployments.rollback(self._ledger, name, leaving=leaving, who=who, why=why)

    def undeploy(self, name: str, *, who: str, why: str = "") -> Deployment:
        """Let nothing serve under `name`; `rollback` brings back what did. SchemeError where nothing ever did."""
        return deployments.undeploy(self._ledger, name, who=who, why=why)

    def serving(self, name: str) -> Deployment | None:
        """Return what serves under `name` as of the last commit, None where nothing does."""
        now = deployments.current(self._ledger, name)
        return None if now is None or now.state == "stopped" else now

    def rolled_back_from(self, name: str) -> str | None:
        """Return the artefact that the last rollback under `name` left; None where the last move was none."""
        if deployments.current(self._ledger, name) is None:
            return None
        return transitions.rolled_back_from(self.history(name))

    def deployments(self) -> tuple[Deployment, ...]:
        """Return what stands under every name, also where nothing serves any more."""
        return deployments.all_deployments(self._ledger)

    def history(self, name: str) -> tuple[Interval, ...]:
        """Return what served under `name` and when, the oldest first; MissingError where nothing ever did."""
        return deployments.history(self._ledger, name)

    def note(self, *notes: Note, is_decision: bool = False) -> None:
        """Add plain events to the log, all in one transaction: thousands cost little more than one.

        is_decision  they are on the disk when this returns, as every change is
        """
        self._ledger.note(notes, is_decision=is_decision)

    def events(self, since: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Return at most `limit` (1 … 10 000) events after the one with the id `since`, in order of commit."""
        return self._ledger.events(since, limit)

    def latest(self, limit: int = 100) -> tuple[Event, ...]:
        """Return the last `limit` (1 … 10 000) events, the latest first."""
        return self._ledger.latest(limit)
