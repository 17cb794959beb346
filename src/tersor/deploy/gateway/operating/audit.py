"""Who changed what, when, from where and with what result: lines that are only ever added."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from tersor.core.errors import MissingError
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note
from tersor.deploy.registry.texts import timestamp

__all__ = ["Author", "Entry", "Line", "Result", "append_line", "last_lines", "last_noted", "note_entry", "one_line"]

Result: TypeAlias = Literal["begun", "done", "failed", "refused"]
"""begun stands before what is done, so that it is known of a gateway that died in between."""
MOST = 500
TAIL, NOTED = 128 << 10, 200
"""Bytes of a file, and events of a registry, that the last lines are looked for in."""
EVERYTHING = "*"
"""Subject of what is about no model in particular."""


@dataclass(frozen=True, slots=True)
class Author:
    """Whose order it is.

    who     name of a key; without keys, who the gateway runs as; what gave a signal
    origin  address and port that it came from, or the kind of signal
    """

    who: str
    origin: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the audit log.

    what     the action
    subject  the model, or "*"
    reason   the operator's, and what went wrong
    """

    author: Author
    what: str
    subject: str
    result: Result
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """What stands in the audit log, as texts: it may have been written by anybody who can write there."""

    at: str
    who: str
    origin: str
    what: str
    subject: str
    result: str
    reason: str


def one_line(text: str) -> str:
    """Return `text` as a log can hold it: printable, on one line, not too long.

    >>> one_line("a\\n b\\x1b[31m")
    'a b?[31m'
    """
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:MOST]


def append_line(path: Path, entry: Entry) -> None:
    """Add a line of JSON to a file; it is on the disk when this returns. MissingError where it cannot be."""
    row = {"at": timestamp(datetime.now(UTC)), **asdict(entry.author), **asdict(entry)}
    del row["author"]
    line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
    try:
        # A link that was put there would lead the log, or what it is written over, elsewhere.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(0, "only a part was written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MissingError(
            f"{path}: the audit log cannot be written ({error.strerror}), so nothing was changed"
        ) from error


def last_lines(path: Path, most: int) -> tuple[Line, ...]:
    """Return the last lines of a file, the latest first; what is no line of a log is left out. MissingError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - TAIL))
            rows = file.read(TAIL).splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise MissingError(f"{path}: the audit log cannot be read ({error.strerror})") from error
    found = (_line(row) for row in reversed(rows))
    return tuple(islice((line for line in found if line is not None), most))


def last_noted(registry: Registry, most: int) -> tuple[Line, ...]:
    """Return the last lines of the log of a registry, the latest first, of its last NOTED events."""
    found = []
    for event in registry.latest(NOTED):
        told = event.details
        if told.get("log") == "audit":
            texts = (one_line(str(told.get(name, ""))) for name in ("origin", "result", "reason"))
            origin, result, reason = texts
            found.append(Line(event.at, event.who, origin, event.what, event.subject, result, reason))
    return tuple(found[:most])


def _line(row: bytes) -> Line | None:
    try:
        told = json.loads(row)
        return Line(**{one.name: one_line(str(told[one.name])) for one in fields(Line)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def note_entry(registry: Registry, entry: Entry) -> None:
    """Add an entry to the log of a registry, on the disk when this returns."""
    details = {"origin": entry.author.origin, "result": entry.result, "reason": entry.reason}
    registry.note(
        Note(entry.what, entry.subject or EVERYTHING, entry.author.who, {**details, "log": "audit"}), is_decision=True
    )
