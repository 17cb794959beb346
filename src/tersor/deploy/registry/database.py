"""The SQLite file of a registry: opened with distrust, read without waiting, written by one at a time.

WAL mode: a reader sees the last commit and neither waits for a writer nor holds one up. A transaction that decides
something is on the disk when its call returns (synchronous=FULL); of plain events a loss of power may cost the last
ones, never their order, and a kill costs nothing that was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tersor.core.errors import EngineError, FormatError, MissingError, SchemeError, TersorError
from tersor.deploy.registry.locking import WriterLock
from tersor.deploy.registry.schema import STEPS, check_schema, migrate, version_of

__all__ = ["DATABASE", "Database", "Mode", "Value"]

DATABASE = "registry.db"
LOCK = "registry.lock"
SMALLEST_PAGE = 512
MAX_VALUE = 1 << 25
"""Bytes of the largest text or row; the largest that is ever written, a Card, has half of that."""

Mode: TypeAlias = Literal["read", "write", "create"]
Value: TypeAlias = str | int | float | None

_OPENED = {"read": "ro", "write": "rw", "create": "rwc"}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
_CLOSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_REFUSED = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG}


class Database:
    """One connection, which threads may share.

    folder        of the registry
    mode          "create" makes folder and file where they are absent
    wait_s        how long to wait for another writer, seconds
    is_exclusive  hold the right to write until `close`

    Raises MissingError where there is no registry, FormatError for a file that is none or damaged, SchemeError for one
    that a newer tersor wrote, EngineError where another process writes for longer than `wait_s`.
    """

    def __init__(self, folder: Path, mode: Mode, *, wait_s: float, is_exclusive: bool = False) -> None:
        self.folder = folder
        self.mode = mode
        self._path = folder / DATABASE
        self._threads = threading.RLock()
        self._writer = WriterLock(folder / LOCK, wait_s)
        _check_place(folder, self._path, mode)
        with contextlib.ExitStack() as undo:
            if is_exclusive:
                self._writer.acquire()
                undo.callback(self._writer.release)
            with _told(folder):
                self._connection = _connected(self._path, mode, wait_s)
                undo.callback(self._connection.close)
                self._prepare()
            undo.pop_all()
        self._is_exclusive = is_exclusive

    def close(self) -> None:
        """Close the file, and let others write."""
        with self._threads:
            self._connection.close()
            if self._is_exclusive:
                self._is_exclusive = False
                self._writer.release()

    def rows(self, statement: str, *values: Value) -> list[dict[str, Any]]:
        """Return every row that a SELECT finds, as column → value."""
        with self._threads, _told(self.folder):
            return [dict(row) for row in self._connection.execute(statement, values)]

    def insert(self, table: str, **columns: Value) -> int:
        """Add one row inside a `writing` block and return its id; an id that is given is kept."""
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608  # names from our own code
        with _told(self.folder):
            made = self._connection.execute(statement, tuple(columns.values())).lastrowid
        assert made is not None
        return made

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """See one commit throughout the block, whatever is written meanwhile."""
        with self._threads, _told(self.folder):
            if self._connection.in_transaction:  # inside a `writing` block, which sees one anyway
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._end("COMMIT")

    @contextlib.contextmanager
    def writing(self, *, is_decision: bool) -> Iterator[None]:
        """Commit what the block adds, all or nothing; on the disk before it returns where it is a decision."""
        if self.mode == "read":
            raise SchemeError(f'{self.folder}: opened for reading; open it with mode="write"')
        with self._threads, self._writer, _told(self.folder):
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_decision else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                self._end("ROLLBACK")

    def check(self) -> None:
        """Read the whole file; FormatError names the first faults that SQLite finds in it."""
        found = [str(row["integrity_check"]) for row in self.rows("PRAGMA integrity_check(5)")]
        if found != ["ok"]:
            raise FormatError(f"{self._path}: damaged ({'; '.join(found)[:300]}); go back to a copy")
        strays = self.rows("PRAGMA foreign_key_check")
        if strays:
            raise FormatError(f"{self._path}: {len(strays)} rows name rows that are not there; go back to a copy")

    def _prepare(self) -> None:
        """Make a new file, bring an older one up to date, refuse every other one."""
        version = version_of(self._connection, self._path)
        if version:
            check_schema(self._connection, version, self._path)
        if version == len(STEPS):
            return
        if not version and self.mode != "create":
            raise MissingError(f"{self.folder}: no registry yet; `tersor registry add` begins one")
        if self.mode == "read":
            raise SchemeError(
                f"{self._path}: schema version {version}; open it for writing once, which makes it current"
            )
        with self._writer:
            self._connection.execute("PRAGMA journal_mode = WAL")
        with self.writing(is_decision=True):
            # Another process may have been first while this one waited.
            migrate(self._connection, version_of(self._connection, self._path))
        # Into the file itself: a log that is lost or damaged later must not make it look like one that was never begun.
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _end(self, statement: str) -> None:
        if self._connection.in_transaction:
            self._connection.execute(statement)


def _check_place(folder: Path, path: Path, mode: Mode) -> None:
    """Refuse what is no plain file before SQLite opens it, and make the folder of a new registry."""
    if mode == "create":
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingError(f"{folder}: cannot be made ({error.strerror or error})") from error
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        if mode != "create":
            raise MissingError(f"{folder}: no registry here; `tersor registry add` begins one") from None
        return
    except (OSError, ValueError) as error:
        raise MissingError(f"{path}: cannot be read ({error})") from error
    # A pipe would be waited for, and a link could be turned elsewhere between two openings.
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"{path}: not a plain file, so no registry")
    # SQLite takes the shortest files for empty ones, and would write over them.
    if 0 < found.st_size < SMALLEST_PAGE:
        raise FormatError(f"{path}: not a registry, or damaged ({found.st_size} bytes); go back to a copy")


def _connected(path: Path, mode: Mode, wait_s: float) -> sqlite3.Connection:
    # The file is never opened by hand: closing it again would drop the locks that SQLite holds on it in this process.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={_OPENED[mode]}",
        uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False,
    )  # fmt: skip
    try:
        connection.row_factory = sqlite3.Row
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "foreign_keys = ON", "mmap_size = 0"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raise what SQLite says as one of our errors."""
    try:
        yield
    except TersorError:
        raise
    except sqlite3.Error as error:
        raise _translated(error, folder / DATABASE) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes what is damaged, and Python cannot read it
        raise FormatError(f"{folder / DATABASE}: damaged; go back to a copy") from error


def _translated(error: sqlite3.Error, path: Path) -> TersorError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says in what way
    if code in _BUSY:
        return EngineError(f"{path}: another process is writing this registry; try again, or end it")
    if code in _DISK:
        return EngineError(f"{path}: {error}; nothing of this was kept")
    if code in _CLOSED:
        return MissingError(f"{path}: {error}; give a folder that you may write in")
    if code in _REFUSED:
        return SchemeError(f"{path}: {error}")
    if isinstance(error, sqlite3.ProgrammingError):
        return SchemeError(f"{path}: {error}")  # closed already
    return FormatError(f"{path}: not a registry, or damaged ({error}); go back to a copy")
