"""The tables, and how an older file becomes a current one.

Every table is only ever added to: triggers refuse to change or remove a row, whatever program asks. `deployments` is a
view of the last transition of each name, so that it cannot disagree with the history. A file whose tables, views or
triggers are others than these is refused: without its triggers it would prove nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tersor.core.errors import FormatError, SchemeError

__all__ = ["APPLICATION", "STEPS", "check_schema", "migrate", "version_of"]

APPLICATION = 0x74727372
"""`application_id` of SQLite's header: "trsr"."""

TABLES = ("artefacts", "verdicts", "overrides", "transitions", "events")

_FIRST = (
    """CREATE TABLE artefacts (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        version INTEGER NOT NULL CHECK (version > 0),
        kind TEXT NOT NULL CHECK (kind IN ('gguf', 'checkpoint', 'onnx', 'torch')),
        path TEXT NOT NULL,
        is_absolute INTEGER NOT NULL CHECK (is_absolute IN (0, 1)),
        files TEXT NOT NULL,
        nbytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        card TEXT,
        baseline INTEGER REFERENCES artefacts (id),
        added TEXT NOT NULL,
        who TEXT NOT NULL,
        UNIQUE (name, version))""",
    """CREATE TABLE verdicts (
        id INTEGER PRIMARY KEY,
        artefact INTEGER NOT NULL REFERENCES artefacts (id),
        at TEXT NOT NULL,
        who TEXT NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN ('pass', 'fail', 'inconclusive')),
        document TEXT NOT NULL)""",
    """CREATE TABLE overrides (
        id INTEGER PRIMARY KEY,
        artefact INTEGER NOT NULL REFERENCES artefacts (id),
        verdict INTEGER REFERENCES verdicts (id),
        at TEXT NOT NULL,
        who TEXT NOT NULL,
        why TEXT NOT NULL)""",
    """CREATE TABLE transitions (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        action TEXT NOT NULL CHECK (action IN ('deploy', 'shift', 'rollback', 'undeploy')),
        state TEXT NOT NULL CHECK (state IN ('serving', 'shadow', 'canary', 'paused', 'stopped')),
        artefact INTEGER NOT NULL REFERENCES artefacts (id),
        fallback INTEGER REFERENCES artefacts (id),
        candidate INTEGER REFERENCES artefacts (id),
        weight REAL NOT NULL CHECK (weight BETWEEN 0 AND 1),
        before INTEGER REFERENCES transitions (id),
        since TEXT NOT NULL,
        who TEXT NOT NULL,
        why TEXT NOT NULL)""",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        subject TEXT NOT NULL,
        details TEXT NOT NULL)""",
    "CREATE INDEX verdicts_of ON verdicts (artefact, id)",
    "CREATE INDEX overrides_of ON overrides (artefact, id)",
    "CREATE INDEX transitions_of ON transitions (name, id)",
    """CREATE VIEW deployments AS
        SELECT * FROM transitions WHERE id IN (SELECT max(id) FROM transitions GROUP BY name)""",
)


def _append_only() -> Iterator[str]:
    """Yield triggers that refuse every change but a new row at the end.

    INSERT OR REPLACE removes rows without a word to the triggers of DELETE, so it is refused by itself.
    """
    for table in TABLES:
        refusal = f"BEGIN SELECT RAISE(ABORT, '{table} is only ever added to'); END"
        same = "id = NEW.id OR (name = NEW.name AND version = NEW.version)" if table == "artefacts" else "id = NEW.id"
        yield f"CREATE TRIGGER {table}_update BEFORE UPDATE ON {table} {refusal}"
        yield f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table} {refusal}"
        exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608  # names from the table above
        yield f"CREATE TRIGGER {table}_replace BEFORE INSERT ON {table} WHEN {exists} {refusal}"


STEPS: tuple[tuple[str, ...], ...] = ((*_FIRST, *_append_only()),)
"""What makes version n + 1 of version n, statement by statement; version 0 is an empty file."""


def version_of(connection: sqlite3.Connection, place: Path) -> int:
    """Return the version of the schema in an open file: 0 where it is empty; FormatError where it is not a registry."""
    application = _number(connection, "application_id")
    version = _number(connection, "user_version")
    if application == APPLICATION:
        if version < 1:
            raise FormatError(f"{place}: schema version {version} never was; go back to a copy")
        return version
    if _is_empty(connection, application, version):
        return 0
    raise FormatError(f"{place}: an SQLite file of another program (application_id {application:#x}), not a registry")


def _is_empty(connection: sqlite3.Connection, application: int, version: int) -> bool:
    """Whether nothing was ever created in the file: a run was killed before its first commit."""
    count: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not count and not application and not version


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the file from `version` to the current one, inside the transaction that is open."""
    for statement in (statement for step in STEPS[version:] for statement in step):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {len(STEPS)}")


def check_schema(connection: sqlite3.Connection, version: int, place: Path) -> None:
    """Refuse a newer file (SchemeError), and one whose tables or triggers were altered (FormatError).

    An older file is compared with what its own version was.
    """
    if version > len(STEPS):
        raise SchemeError(
            f"{place}: schema version {version}, this tersor reads up to {len(STEPS)}; use the tersor that wrote it"
        )
    found, wanted = _objects(connection), _wanted(version)
    differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if differing:
        raise FormatError(
            f"{place}: its schema was altered ({', '.join(differing[:5])!r:.200}); what it says of the past is no "
            "proof: go back to a copy"
        )


def _wanted(version: int) -> dict[str, str]:
    connection = sqlite3.connect(":memory:")
    try:
        for statement in (statement for step in STEPS[:version] for statement in step):
            connection.execute(statement)
        return _objects(connection)
    finally:
        connection.close()


def _objects(connection: sqlite3.Connection) -> dict[str, str]:
    """Return name → SQL of everything in a file but what SQLite makes by itself."""
    rows = connection.execute("SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 1000")
    return {str(name): f"{kind}: {sql}" for name, kind, sql in rows}


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    value: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return value
