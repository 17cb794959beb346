"""One writer at a time, readers that never wait, and what is on the disk when."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from tersor.core.errors import EngineError
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note


def test_decisions_are_on_the_disk_and_events_in_one_batch(registry: Registry) -> None:
    seen: list[str] = []
    registry._ledger.database._connection.set_trace_callback(seen.append)
    registry.deploy("chat", "full", who="ann")
    decision = [line for line in seen if line.startswith(("PRAGMA synchronous", "BEGIN", "COMMIT"))]
    assert decision == ["PRAGMA synchronous = FULL", "BEGIN IMMEDIATE", "COMMIT"]
    seen.clear()
    registry.note(*[Note("seen", "chat", "srv", {})] * 100)
    batch = [line for line in seen if line.startswith(("PRAGMA synchronous", "BEGIN", "COMMIT"))]
    assert batch == ["PRAGMA synchronous = NORMAL", "BEGIN IMMEDIATE", "COMMIT"]
    assert registry._ledger.database.rows("PRAGMA journal_mode") == [{"journal_mode": "wal"}]


def test_a_second_writer_is_told_who_writes_after_a_bounded_wait(registry: Registry, folder: Path) -> None:
    with Registry.open(folder, mode="write", is_exclusive=True):
        begun = time.monotonic()
        with pytest.raises(EngineError, match=r"process \d+ is writing this registry, and was after 0.2 s"):
            registry.deploy("chat", "full", who="ann")
        assert 0.2 <= time.monotonic() - begun < 60
        assert registry.serving("chat") is None
    assert registry.deploy("chat", "full", who="ann").artefact == "full:1"


def test_another_program_that_writes_is_waited_for_and_then_named(registry: Registry, folder: Path) -> None:
    connection = sqlite3.connect(folder / "registry.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(EngineError, match="another process is writing this registry"):
        registry.deploy("chat", "full", who="ann")
    connection.execute("ROLLBACK")
    connection.close()
    assert registry.deploy("chat", "full", who="ann").artefact == "full:1"


def test_readers_see_the_last_commit_and_do_not_wait(registry: Registry, folder: Path) -> None:
    registry.deploy("chat", "full", who="ann")
    database = registry._ledger.database
    with Registry.open(folder, wait_s=30) as reader:
        with database.writing(is_decision=True):
            registry._ledger.log("half", "chat", "ann", {})
            begun = time.monotonic()
            with Registry.open(folder, wait_s=30) as newcomer:
                assert "half" not in {event.what for event in newcomer.events()}
            assert "half" not in {event.what for event in reader.events()}
            assert [row.artefact for row in reader.deployments()] == ["full:1"]
            assert time.monotonic() - begun < 25
        assert "half" in {event.what for event in reader.events()}
        with reader._ledger.database.reading():  # and a reader holds up no writer
            seen = reader.events()
            registry.note(Note("later", "chat", "ann", {}))
            assert reader.events() == seen
        assert reader.events()[-1].what == "later"


def test_threads_share_a_registry(registry: Registry) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(20):
                registry.note(Note("work", f"thread{number}", "srv", {"index": index}))
                assert registry.artefact("q4").label == "q4:1"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for number in range(4):
        found = [event.details["index"] for event in registry.events() if event.subject == f"thread{number}"]
        assert found == list(range(20))
