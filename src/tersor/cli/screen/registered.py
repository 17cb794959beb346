"""What a registry holds, as lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from tersor.cli.screen.output import table
from tersor.core.card import Card
from tersor.core.quantities import size
from tersor.deploy.registry.rows import Deployment, Event, GateVerdict, Interval, Override, RegisteredArtefact

__all__ = ["artefact_lines", "artefact_table", "deployment_line", "deployment_table", "event_table", "history_table"]

SHOWN_FILES = 20


def artefact_table(
    rows: tuple[RegisteredArtefact, ...],
    verdicts: Mapping[str, tuple[GateVerdict, ...]],
    objections: Mapping[str, str | None],
) -> Table:
    """Every artefact with its last verdict, by label, and whether it may serve."""
    made = table("artefact", "kind", ">size", "baseline", "gate", "may serve", "added")
    for row in rows:
        last = verdicts[row.label][-1].outcome if verdicts[row.label] else "–"
        allowed = "no" if objections[row.label] else "yes"
        made.add_row(row.label, row.kind, size(row.nbytes), row.baseline or "–", last, allowed, _short(row.added))
    return made


def deployment_table(rows: tuple[Deployment, ...]) -> Table:
    """What stands under every name."""
    made = table("deployment", "state", "artefact", "fallback", "candidate", "since")
    for row in rows:
        made.add_row(row.name, row.state, row.artefact, row.fallback or "–", _candidate(row), _short(row.since))
    return made


def history_table(rows: tuple[Interval, ...]) -> Table:
    """What served when, who let it and why."""
    made = table("since", "until", "artefact", "fallback", "candidate", "by", "who", "why")
    for row in rows:
        here = row.deployment
        until = _short(row.until) if row.until else "now"
        names = (here.artefact, here.fallback or "–", _candidate(here), here.action, here.who, here.why)
        made.add_row(_short(here.since), until, *names)
    return made


def event_table(rows: Sequence[Event]) -> Table:
    """What was done, by whom, from where and with what result."""
    made = table(">id", "at", "who", "what", "subject", "result", "from", "why")
    for row in rows:
        origin, result = row.details.get("origin", ""), row.details.get("result", "done")
        why = row.details.get("reason") or row.details.get("why") or row.details.get("outcome") or ""
        told = (_shown(value) for value in (result, origin, why))
        made.add_row(str(row.id), _short(row.at), row.who, row.what, row.subject, *told)
    return made


def deployment_line(row: Deployment) -> str:
    """What stands under a name, in a sentence."""
    spare = f", {row.fallback} stands by" if row.fallback else ""
    return f"{row.name}: {row.artefact} serves since {_short(row.since)}{spare} ({row.action} by {row.who})"


def artefact_lines(
    row: RegisteredArtefact,
    verdicts: tuple[GateVerdict, ...],
    overrides: tuple[Override, ...],
    objection: str | None,
    card: Card | None,
) -> Iterator[str]:
    """All that is known of an artefact, line by line."""
    yield f"{row.label}: {row.kind}, {size(row.nbytes)}, {row.path}"
    yield f"added {_short(row.added)} by {row.who}, compared with {row.baseline or 'nothing: it is full precision'}"
    if card is not None:
        yield f"Card: {card.name}, {card.plan.bits_per_weight:.2f} bits per weight"
    for file in row.files[:SHOWN_FILES]:
        yield f"  {file.sha256}  {file.path}  {size(file.nbytes)}"
    if len(row.files) > SHOWN_FILES:
        yield f"  and {len(row.files) - SHOWN_FILES} more (--json shows all)"
    for verdict in verdicts:
        yield f"gate {_short(verdict.at)}: {verdict.outcome} ({verdict.who})"
    for override in overrides:
        yield f"override {_short(override.at)}: {override.who} answers for it: {override.why}"
    yield "may serve" if objection is None else f"may not serve: {objection}"


def _shown(value: object) -> str:
    """Part of a document, which may hold anything, as a terminal can be given it."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _candidate(row: Deployment) -> str:
    return f"{row.candidate}, {row.state}, {row.weight:.4g}" if row.candidate else "–"


def _short(time: str) -> str:
    """A time to the second."""
    return f"{time[:19]}Z"
