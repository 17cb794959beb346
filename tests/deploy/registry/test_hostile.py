"""Databases that are none, damaged or forged, and names that are no names."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from pathlib import Path

import pytest

from tersor.core.errors import FormatError, MissingError, SchemeError, TersorError
from tersor.deploy.registry import schema
from tersor.deploy.registry.manifest import manifest_digest
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note

ODD_NAMES = (
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a b",
    "a:b:c",
    "-x",
    "ä",
    "a\n",
    "a\0",
    "\udcff",
    "x" * 129,
    "a;DROP",
    "'",
    "%s",
)

COPY = """INSERT INTO artefacts SELECT NULL, 'x', 1, kind, {}, 0, '{}', 0, sha256, NULL, NULL, added, who
    FROM artefacts WHERE id = 1"""


@pytest.fixture
def closed(registry: Registry, folder: Path) -> Path:
    """The file of a registry that nobody has open, with rows in every table."""
    registry.override("q4", who="bob", why="so be it")
    registry.record_verdict("q8", "pass", {"kl_mean": 0.1}, who="gate")
    registry.deploy("chat", "q8", who="ann")
    registry.note(*[Note("seen", "chat", "srv", {"index": index}) for index in range(200)])
    registry.close()
    return folder / "registry.db"


def forge(path: Path, *statements: str) -> None:
    """Do as another program could."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def use(folder: Path) -> None:
    """Ask for everything, then write."""
    with Registry.open(folder, mode="write", wait_s=0.2) as opened:
        opened.check()
        for row in opened.artefacts():
            opened.verdicts(row.label)
            opened.overrides(row.label)
            opened.card(row.label)
            opened.verify(row.label)
        for deployment in opened.deployments():
            opened.history(deployment.name)
        opened.events()
        opened.note(Note("used", "chat", "srv", {}))


@pytest.mark.parametrize("content", [b"x", b"not SQLite" * 1000, b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 4096])
def test_a_file_that_is_not_sqlite_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "registry.db").write_bytes(content)
    for mode in ("read", "write", "create"):
        with pytest.raises(FormatError, match=r"registry\.db: not a registry, or damaged"):
            Registry.open(tmp_path, mode=mode)
    assert (tmp_path / "registry.db").read_bytes() == content


def test_an_empty_file_is_where_a_run_was_killed_and_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "registry.db").touch()
    for mode in ("read", "write"):
        with pytest.raises(MissingError, match="no registry yet"):
            Registry.open(tmp_path, mode=mode)
    with Registry.open(tmp_path, mode="create") as opened:
        assert opened.artefacts() == ()


def test_a_registry_that_lost_its_log_is_not_taken_for_a_new_one(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "registry.db").write_bytes((folder / "registry.db").read_bytes())
    with Registry.open(tmp_path / "copy", mode="write") as opened:
        opened.check()


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, closed: Path) -> None:
    places = {name: tmp_path / name / "registry.db" for name in ("folder", "pipe", "link")}
    for path in places.values():
        path.parent.mkdir()
    places["folder"].mkdir()
    os.mkfifo(places["pipe"])
    places["link"].symlink_to(closed)
    for path in places.values():
        with pytest.raises(FormatError, match="not a plain file"):
            Registry.open(path.parent, mode="create")
    (tmp_path / "file").touch()
    with pytest.raises(MissingError, match="no registry here"):
        Registry.open(tmp_path / "file")
    with pytest.raises(MissingError, match="cannot be made"):
        Registry.open(tmp_path / "file", mode="create")


def test_a_lock_that_is_no_plain_file_is_refused_at_once(closed: Path) -> None:
    lock = closed.with_name("registry.lock")
    lock.unlink()
    os.mkfifo(lock)
    with Registry.open(closed.parent, mode="write") as opened, pytest.raises(MissingError, match="not a plain file"):
        opened.deploy("chat", "full", who="ann")
    lock.unlink()
    lock.symlink_to(closed)
    with Registry.open(closed.parent, mode="write") as opened, pytest.raises(MissingError, match="cannot be written"):
        opened.deploy("chat", "full", who="ann")


def test_the_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    forge(tmp_path / "registry.db", "CREATE TABLE mine (x)", "PRAGMA user_version = 1")
    before = (tmp_path / "registry.db").read_bytes()
    for mode in ("read", "create"):
        with pytest.raises(FormatError, match="an SQLite file of another program"):
            Registry.open(tmp_path, mode=mode)
    assert (tmp_path / "registry.db").read_bytes() == before


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(closed: Path, version: int) -> None:
    forge(closed, f"PRAGMA user_version = {version}")
    with pytest.raises(FormatError, match=f"schema version {version} never was"):
        Registry.open(closed.parent, mode="create")


def test_a_newer_file_is_refused_by_its_version(closed: Path) -> None:
    forge(closed, "PRAGMA user_version = 99")
    for mode in ("read", "write", "create"):
        with pytest.raises(
            SchemeError, match=r"schema version 99, this tersor reads up to 1; use the tersor that wrote"
        ):
            Registry.open(closed.parent, mode=mode)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER events_delete", "DROP TRIGGER overrides_update", "DROP VIEW deployments",
        "DROP INDEX verdicts_of",
        "CREATE TABLE more (x)", "ALTER TABLE events ADD COLUMN x",
        "CREATE TRIGGER sly AFTER INSERT ON events BEGIN SELECT 1; END",
    ],
)  # fmt: skip
def test_a_file_whose_tables_or_triggers_were_altered_is_refused(closed: Path, statement: str) -> None:
    forge(closed, statement)
    with pytest.raises(FormatError, match="its schema was altered"):
        Registry.open(closed.parent)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("INSERT INTO events VALUES (NULL, x'00', 'a', 'b', 'c', '{}')", "at must be str"),
        ("INSERT INTO events VALUES (NULL, 'a', 'a', 'b', 'c', '[]')", "details: an object is needed"),
        ("INSERT INTO events VALUES (NULL, 'a', 'a', 'b', 'c', 'x')", "details: not a JSON document"),
        ("INSERT INTO events VALUES (NULL, 'a', 'a', 'b', 'c', x'00')", "details: a document is needed"),
        ("INSERT INTO events VALUES (NULL, 'a', char(27) || '[2J', 'b', 'c', '{}')", "who: .* is not printable text"),
        ("INSERT INTO events VALUES (NULL, CAST(x'ff' AS TEXT), 'a', 'b', 'c', '{}')", "damaged"),
        (COPY.format("path", "[]"), "x:1: its manifest was altered"), (COPY.format("path", "{}"), "files: a list"),
    ],
)  # fmt: skip
def test_rows_that_we_never_write_are_refused(closed: Path, statement: str, problem: str) -> None:
    forge(closed, statement)
    with pytest.raises(FormatError, match=problem):
        use(closed.parent)


@pytest.mark.parametrize("path", ["../full.gguf", "/etc/passwd", "a/../../full.gguf", "", "nul"])
def test_a_forged_path_leads_nowhere(closed: Path, path: str) -> None:
    sql = "'a' || char(0)" if path == "nul" else f"'{path}'"
    forge(closed, COPY.format(sql, "[]").replace("sha256", f"'{manifest_digest(())}'"))
    problem = "is not printable text" if path == "nul" else "is no path below the folder of the registry"
    with Registry.open(closed.parent, mode="write") as opened:
        for call in (opened.path, lambda label: opened.deploy("forged", label, who="ann")):
            with pytest.raises(TersorError, match=problem):
                call("x")


def test_an_index_that_contradicts_its_table_is_found_by_check(closed: Path) -> None:
    connection = sqlite3.connect(closed)
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'transitions_of'").fetchone()
    connection.close()
    data = bytearray(closed.read_bytes())
    inside = slice((page - 1) * size, page * size)
    data[inside] = data[inside].replace(b"chat", b"chbt")
    closed.write_bytes(data)
    with Registry.open(closed.parent) as opened, pytest.raises(FormatError, match="missing from index transitions_of"):
        opened.check()


def test_we_add_no_row_that_names_a_row_that_is_not_there(registry: Registry) -> None:
    database = registry._ledger.database
    with pytest.raises(SchemeError, match="FOREIGN KEY"), database.writing(is_decision=True):
        database.insert("verdicts", artefact=77, at="a", who="b", outcome="pass", document="{}")
    assert database.rows("SELECT * FROM verdicts") == []


def test_strays_are_found_by_check(closed: Path) -> None:
    forge(closed, "PRAGMA foreign_keys = OFF", "INSERT INTO verdicts VALUES (NULL, 77, 'a', 'b', 'pass', '{}')")
    with (
        Registry.open(closed.parent) as opened,
        pytest.raises(FormatError, match="1 rows name rows that are not there"),
    ):
        opened.check()


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_an_error_of_ours_or_harmless_and_soon(closed: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(closed.read_bytes())
    if seed % 4 == 0:
        data = data[: chance.randrange(len(data))]
    else:
        for _ in range(chance.choice([1, 10, 300])):
            data[chance.randrange(len(data))] = chance.randrange(256)
    closed.write_bytes(data)
    begun = time.monotonic()
    with contextlib.suppress(TersorError):
        use(closed.parent)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_refused_everywhere(registry: Registry, folder: Path, name: str) -> None:
    with pytest.raises(SchemeError, match="cannot name an artefact"):
        registry.add_artefact(name, folder / "full.gguf", who="ann")
    with pytest.raises(SchemeError, match="cannot name a deployment"):
        registry.deploy(name, "full", who="ann")
    for call in (registry.serving, registry.history):
        with pytest.raises(SchemeError, match="cannot name a deployment"):
            call(name)
    with pytest.raises(SchemeError, match=r"cannot name an artefact|is no version"):
        registry.artefact(name)


@pytest.mark.parametrize("version", ["", "0", "-1", "1.5", "٣", "9" * 30, "1:2"])
def test_odd_versions_are_refused(registry: Registry, version: str) -> None:
    with pytest.raises(SchemeError, match="is no version: a whole number from 1 on"):
        registry.artefact(f"q4:{version}")


@pytest.mark.parametrize("who", ["", " ", "a\nb", "\x1b[2J", "x" * 2001, "\udcff"])
def test_odd_people_are_refused(registry: Registry, folder: Path, who: str) -> None:
    events = registry.events()
    for call in (
        lambda: registry.deploy("chat", "full", who=who),
        lambda: registry.override("q4", who=who, why="so be it"),
        lambda: registry.record_verdict("q4", "pass", {}, who=who),
        lambda: registry.add_artefact("new", folder / "full.gguf", who=who),
    ):
        with pytest.raises(SchemeError, match="who: 1 to 2000 printable characters"):
            call()
    assert registry.events() == events
    assert registry.serving("chat") is None


def test_documents_that_json_cannot_hold_or_are_huge_are_refused(registry: Registry) -> None:
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for document, problem in (({"a": object()}, "JSON cannot hold it"), ({"a": "x" * (1 << 22)}, "at most 4,194,304"),
                              (deep, "JSON cannot hold it")):  # fmt: skip
        with pytest.raises(SchemeError, match=problem):
            registry.record_verdict("q4", "pass", document, who="gate")
    while deep:
        deep = deep["a"]  # type: ignore[assignment]  # taken apart by hand: freeing it at once would overflow the stack
    with pytest.raises(SchemeError, match="'maybe' is no verdict"):
        registry.record_verdict("q4", "maybe", {}, who="gate")  # type: ignore[arg-type]  # on purpose
    assert registry.verdicts("q4") == ()
    kept = registry.record_verdict("q4", "fail", {"x": float("inf"), "é": ["\x1b", None, True]}, who="gate")
    assert kept.document == {"x": "Infinity", "é": ["\x1b", None, True]}


@pytest.mark.parametrize(("since", "limit"), [(-1, 10), (1 << 63, 10), (0, 0), (0, 10_001)])
def test_events_are_asked_for_within_bounds(registry: Registry, since: int, limit: int) -> None:
    with pytest.raises(SchemeError, match="an id from 0 on and 1 to 10000 are needed"):
        registry.events(since=since, limit=limit)


def test_an_older_file_becomes_a_current_one_all_at_once(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = ("ALTER TABLE transitions ADD COLUMN region TEXT", "CREATE INDEX events_of ON events (subject, id)")
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, second))
    monkeypatch.setattr("tersor.deploy.registry.database.STEPS", schema.STEPS)
    with pytest.raises(SchemeError, match="schema version 1; open it for writing once"):
        Registry.open(closed.parent)
    monkeypatch.setattr(schema, "STEPS", (schema.STEPS[0], (*second, "CREATE TABLE broken (")))
    with pytest.raises(FormatError):
        Registry.open(closed.parent, mode="write")
    connection = sqlite3.connect(closed)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events_of'").fetchall()
    connection.close()
    monkeypatch.setattr(schema, "STEPS", (schema.STEPS[0], second))
    with Registry.open(closed.parent, mode="write") as opened:
        assert len(opened.events(limit=10_000)) == 206
        assert opened.deploy("chat", "full", who="ann").artefact == "full:1"
        opened.check()
    with Registry.open(closed.parent) as opened:
        assert opened._ledger.database.rows("PRAGMA user_version") == [{"user_version": 2}]
