"""The database with a clock: rows as dataclasses, and the log of what happened.

Nothing in the file is believed to be of its type. Every change writes its line of the log in its own transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from tersor.core.errors import FormatError, SchemeError
from tersor.core.records import from_json_text, read_record
from tersor.deploy.registry.database import Database
from tersor.deploy.registry.rows import Event, Note
from tersor.deploy.registry.texts import checked_text, document_text, timestamp

__all__ = ["Clock", "Ledger", "label_of"]

Row = TypeVar("Row")
Clock: TypeAlias = Callable[[], datetime]

EVENTS = "SELECT id, at, who, what, subject, details FROM events"
MAX_EVENTS = 10_000


def label_of(alias: str, name: str) -> str:
    """Return the SQL for the label of a joined artefact, as column `name`.

    >>> label_of("b", "baseline")
    "b.name || ':' || b.version AS baseline"
    """
    return f"{alias}.name || ':' || {alias}.version AS {name}"


class Ledger:
    """What the parts of a registry read and write by."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self._clock = clock

    def found(self, kind: type[Row], statement: str, *values: str | int, document: str = "") -> tuple[Row, ...]:
        """Return what a SELECT finds as rows of `kind`; the column `document` holds JSON.

        Raises FormatError for columns of another type, and for text that would not stay on its line.
        """
        return tuple(
            _made(kind, row, str(self.database.folder), document) for row in self.database.rows(statement, *values)
        )

    def log(self, what: str, subject: str, who: str, details: Mapping[str, Any]) -> str:
        """Add a line to the log, inside the transaction that is open, and return the time that it bears."""
        at = timestamp(self._clock())
        self.database.insert(
            "events", at=at, who=checked_text(who, "who"), what=checked_text(what, "what"),
            subject=checked_text(subject, "subject"), details=document_text(details, f"details of {what}"),
        )  # fmt: skip
        return at

    def note(self, notes: tuple[Note, ...], *, is_decision: bool) -> None:
        """Add plain events, in one transaction."""
        with self.database.writing(is_decision=is_decision):
            for note in notes:
                self.log(note.what, note.subject, note.who, note.details)

    def events(self, since: int, limit: int) -> tuple[Event, ...]:
        """Return at most `limit` events after the one with the id `since`."""
        if not 0 <= since < 1 << 63 or not 1 <= limit <= MAX_EVENTS:
            raise SchemeError(
                f"events since {since}, at most {limit}: an id from 0 on and 1 to {MAX_EVENTS} are needed"
            )
        return self.found(Event, f"{EVENTS} WHERE id > ? ORDER BY id LIMIT ?", since, limit, document="details")

    def latest(self, limit: int) -> tuple[Event, ...]:
        """Return the last `limit` events, the latest first."""
        if not 1 <= limit <= MAX_EVENTS:
            raise SchemeError(f"the last {limit} events: 1 to {MAX_EVENTS} are needed")
        return self.found(Event, f"{EVENTS} ORDER BY id DESC LIMIT ?", limit, document="details")


def _made(kind: type[Row], row: dict[str, Any], folder: str, document: str) -> Row:
    """Return one row as a dataclass; a document is kept as what JSON holds, a list of dataclasses as its field says."""
    place = f"{folder}: row {row.get('id')!r:.30} of {kind.__name__}"
    for column, value in row.items():
        if isinstance(value, str) and column != document and not value.isprintable():
            raise FormatError(f"{place}: {column}: {value!r:.60} is not printable text; the file is damaged")
    if not document:
        return read_record(kind, row, place)
    text = row[document]
    if not isinstance(text, str):
        raise FormatError(f"{place}: {document}: a document is needed, got {type(text).__name__}")
    value = from_json_text(text, f"{place}: {document}")
    if isinstance(value, dict):
        return replace(read_record(kind, {**row, document: {}}, place), **{document: value})  # type: ignore[type-var]  # a dataclass
    return read_record(kind, {**row, document: value}, place)
