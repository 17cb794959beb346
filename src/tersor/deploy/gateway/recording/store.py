"""Where a record outlives its gateway: one small SQLite file beside the deployment, bounded in rows.

A kill loses the minute that lasts, at most. What is in a minute and a day changes in one transaction, so that nothing
is counted twice. A file that is damaged is set aside, for a record is no reason not to serve.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.core.errors import FormatError, MissingError
from tersor.deploy.gateway.recording.cells import Cell
from tersor.deploy.gateway.recording.recorder import DAY_S, DAYS, MINUTE_S, MINUTES, Record, Recorder
from tersor.deploy.gateway.recording.samples import Reference

__all__ = ["Happening", "Store", "read_cells", "read_days", "read_document", "read_happenings"]

APPLICATION = 0x74727377
MOST_HAPPENINGS = 10_000
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS cells (model TEXT NOT NULL, variant TEXT NOT NULL, kind TEXT NOT NULL,
        at INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (model, variant, kind, at)) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS happenings (id INTEGER PRIMARY KEY, at REAL NOT NULL, what TEXT NOT NULL,
        model TEXT NOT NULL, details TEXT NOT NULL)""",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that a watch saw or did: an alert that fires or ends, a refresh that is wanted; Unix seconds `at`."""

    at: float
    what: str
    model: str
    details: Mapping[str, Any]


class Store:
    """The file; its calls block, and may come from several threads: one after the other has its turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved: dict[tuple[str, str], int] = {}
        self._turn = threading.Lock()
        try:
            self._connection = self._opened()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise MissingError(f"{path}: the record cannot be opened ({error}); give another `record:`") from error
            aside = path.with_suffix(f"{path.suffix}.damaged")
            path.replace(aside)
            _log.error("%s is no record (%s): set aside as %s, and begun anew", path, error, aside.name)
            self._connection = self._opened()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            if application not in (0, APPLICATION):
                raise FormatError(f"{self.path}: an SQLite file of another program, no record; give another `record:`")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a loss of power may cost a minute, never the file
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            for statement in SCHEMA:
                connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def fill(self, recorder: Recorder) -> None:
        """Let a recorder go on where the last gateway ended."""
        rows = self._connection.execute(
            "SELECT model, variant, kind, at, document FROM cells WHERE at >= ? ORDER BY at",
            (recorder.clock() - (DAYS + 1) * DAY_S,),
        )
        for model, variant, kind, at, document in rows:
            record = recorder.records.setdefault((model, variant), Record())
            try:
                cell = Cell.of(at, json.loads(document))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                _log.error("%s: a %s of %s/%s cannot be read (%s)", self.path, kind, model, variant, error)
                continue
            if kind == "day":
                record.days.append(cell)
            elif cell.at > recorder.clock():
                continue  # a clock was ahead that is no more
            elif kind == "minute":
                record.minutes.append(cell)
            else:
                record.now = cell

    def save(self, recorder: Recorder) -> None:
        """Write what was counted since the last time, and drop what is too old."""
        connection, now = self._connection, recorder.clock()
        saved: dict[tuple[str, str], int] = {}
        with self._writing():
            for (model, variant), record in list(recorder.records.items()):
                since = self._saved.get((model, variant), 0)
                since = since if since <= record.now.at else 0  # the clock was set back
                saved[model, variant] = record.now.at
                connection.execute(
                    "DELETE FROM cells WHERE model = ? AND variant = ? AND kind = 'now'", (model, variant)
                )
                rows = [("now", record.now), *(("minute", one) for one in record.minutes if one.at >= since)]
                rows += [("day", one) for one in record.days if one.at + 2 * DAY_S > since]
                connection.executemany(
                    "INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)",
                    [(model, variant, kind, one.at, json.dumps(one.to_object())) for kind, one in rows if one.at],
                )
            hour = now - MINUTES * MINUTE_S, now
            connection.execute("DELETE FROM cells WHERE kind = 'minute' AND NOT at BETWEEN ? AND ?", hour)
            connection.execute("DELETE FROM cells WHERE at < ?", (now - (DAYS + 1) * DAY_S,))
        self._saved |= saved  # only now: what could not be written is written the next time

    def happen(self, *happenings: Happening, **documents: object) -> None:
        """Add to what happened, and keep documents by their names with it; the oldest goes where there is too much."""
        with self._writing():
            self._connection.executemany(
                "INSERT INTO happenings (at, what, model, details) VALUES (?, ?, ?, ?)",
                [(one.at, one.what, one.model, json.dumps(one.details)) for one in happenings],
            )
            self._connection.execute(
                "DELETE FROM happenings WHERE id <= (SELECT max(id) FROM happenings) - ?", (MOST_HAPPENINGS,)
            )
            for name, document in documents.items():
                self._put(name, document)

    def put(self, name: str, document: object) -> None:
        """Keep a document under a name."""
        with self._writing():
            self._put(name, document)

    def _put(self, name: str, document: object) -> None:
        self._connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (name, json.dumps(document)))

    def get(self, name: str) -> Any:
        """Return the document under a name; None where there is none, or none that can be read."""
        row = self._connection.execute("SELECT document FROM documents WHERE name = ?", (name,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except ValueError:
            return None

    def last(self, what: str) -> dict[str, float]:
        """Return when something happened last, by model."""
        query = "SELECT model, at FROM happenings WHERE what = ? ORDER BY id"
        return {str(model): float(at) for model, at in self._connection.execute(query, (what,))}

    def reference(self, name: str) -> Reference | None:
        """Return the reference that was kept under a name; None where there is none."""
        found = self.get(name)
        try:
            return None if found is None else Reference.of(found)
        except (ValueError, KeyError, TypeError) as error:
            _log.error("%s: the reference %r cannot be read (%s): it is made anew", self.path, name, error)
            return None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def read_cells(path: Path) -> dict[tuple[str, str], Record]:
    """Return model, variant → what was counted, as a recorder has it; nothing where there is no record.

    It may be read while a gateway writes it. Raises FormatError where the file is none.
    """
    found: dict[tuple[str, str], Record] = {}
    query = "SELECT model, variant, kind, at, document FROM cells ORDER BY model, variant, at"
    for model, variant, kind, at, document in _rows(path, query):
        record = found.setdefault((model, variant), Record())
        try:
            cell = Cell.of(at, json.loads(document))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FormatError(f"{path}: damaged ({str(error)[:80]})") from error
        if kind == "now":
            record.now = cell
        else:
            (record.days if kind == "day" else record.minutes).append(cell)
    return found


def read_days(path: Path) -> dict[tuple[str, str], list[Cell]]:
    """Return model, variant → days, the oldest first, the one that lasts included; as `read_cells`."""
    found = {}
    for key, record in read_cells(path).items():
        days: dict[int, Cell] = {}
        for cell in (*record.days, *([record.now] if record.now.at else [])):
            day = cell.at // DAY_S * DAY_S
            days.setdefault(day, Cell(day)).add(cell)
        found[key] = [days[day] for day in sorted(days)]
    return found


def read_document(path: Path, name: str) -> Any:
    """Return the document under a name; None where there is none. FormatError where the file is no record."""
    rows = _rows(path, "SELECT document FROM documents WHERE name = ?", name)
    try:
        return json.loads(rows[0][0]) if rows else None
    except ValueError as error:
        raise FormatError(f"{path}: damaged ({str(error)[:80]})") from error


def read_happenings(path: Path, most: int = MOST_HAPPENINGS) -> list[Happening]:
    """Return the last that happened, the oldest first; FormatError where the file is no record."""
    rows = _rows(path, "SELECT at, what, model, details FROM happenings ORDER BY id DESC LIMIT ?", most)[::-1]
    try:
        return [
            Happening(float(at), str(what), str(model), dict(json.loads(details))) for at, what, model, details in rows
        ]
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: damaged ({str(error)[:80]})") from error


def _rows(path: Path, query: str, *given: object) -> list[tuple[Any, ...]]:
    if not path.exists():
        return []
    try:
        with contextlib.closing(
            sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, timeout=5)
        ) as connection:
            return connection.execute(query, given).fetchall()
    except sqlite3.Error as error:
        raise FormatError(f"{path}: no record of a gateway ({error})") from error
