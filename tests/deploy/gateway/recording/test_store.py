"""A record outlives its gateway, whatever way that ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.gateway.recording.test_recorder import Clock

from tersor.core.errors import FormatError
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.store import Happening, Store, read_cells, read_days, read_happenings

COUNTING = """
import itertools, sys
from pathlib import Path
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.store import Store
now = [1_800_000_000.0]
recorder, store = Recorder(lambda: now[0]), Store(Path(sys.argv[1]))
for number in itertools.count(1):
    recorder.answered("m", "q", 0.1, 0.2, 1)
    store.save(recorder)
    print(number, flush=True)
    now[0] += 20
"""


def a_minute(recorder: Recorder, clock: Clock) -> None:
    """One answer, and the minute that it lies in is over."""
    recorder.answered("m", "q", 0.01, 0.02)
    clock.now += 60.0
    recorder.turn([("m", "q")])


def test_what_was_saved_is_there_again_once(tmp_path: Path) -> None:
    clock = Clock()
    recorder, path = Recorder(clock), tmp_path / "record.db"
    for saved in range(30):
        store = Store(path)
        recorder = Recorder(clock)
        store.fill(recorder)
        for _ in range(10):
            recorder.answered("m", "q", 0.01, 0.02)
            clock.now += 7.0 * 600  # over midnights
            store.save(recorder)
        store.close()
        record = recorder.records["m", "q"]
        total = sum(day.answered for day in record.days) + record.now.answered
        assert total == 10 * (saved + 1)
        assert sum(day.answered for day in read_days(path)["m", "q"]) == total


def test_a_kill_loses_no_more_than_was_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "record.db"
    command = [sys.executable, "-c", COUNTING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = 0
        while seen < 200:
            seen = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
    seen = int(rest[-1]) if rest else seen
    assert sum(day.answered for day in read_days(path)["m", "q"]) in (seen, seen + 1)


def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, path = Clock(), tmp_path / "record.db"
    recorder, store = Recorder(clock), Store(path)

    def full(*_: object) -> str:
        raise sqlite3.OperationalError("database or disk is full")

    for minute in range(4):
        a_minute(recorder, clock)
        with monkeypatch.context() as patch:
            if minute % 2 == 0:
                patch.setattr("tersor.deploy.gateway.recording.store.json.dumps", full)
                with pytest.raises(sqlite3.OperationalError):
                    store.save(recorder)
            else:
                store.save(recorder)
    store.close()
    again = Recorder(clock)
    Store(path).fill(again)
    assert [one.answered for one in again.records["m", "q"].minutes] == [1, 1, 1, 1]


def test_minutes_of_a_clock_that_was_ahead_are_forgotten_and_those_after_it_kept(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "record.db"
    recorder, store = Recorder(clock), Store(path)
    for _ in range(3):
        a_minute(recorder, clock)
    store.save(recorder)
    clock.now -= 6 * 3600
    early = Recorder(clock)
    store.fill(early)  # a gateway that begins before anything was counted anew
    assert not early.records["m", "q"].minutes
    for _ in range(2):
        a_minute(recorder, clock)
    store.save(recorder)
    again = Recorder(clock)
    store.fill(again)
    store.close()
    assert [one.answered for one in again.records["m", "q"].minutes] == [1, 1]
    assert sum(day.answered for day in again.records["m", "q"].days) == 5
    assert len(read_cells(path)["m", "q"].minutes) == 2


def test_a_save_writes_what_is_new_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    recorder, store, written = Recorder(clock), Store(tmp_path / "record.db"), list[object]()

    def told(document: object) -> str:
        written.append(document)
        return dumps(document)

    dumps = json.dumps
    monkeypatch.setattr("tersor.deploy.gateway.recording.store.json.dumps", told)
    for _ in range(20 * 24):  # twenty days
        recorder.answered("m", "q", 0.01, 0.02)
        clock.now += 3600.0
        store.save(recorder)
    for _ in range(30):
        clock.now += 60.0
        recorder.answered("m", "q", 0.01, 0.02)
        written.clear()
        store.save(recorder)
        assert len(written) <= 5  # this minute, the one before, and the days that they may be in


def test_a_gateway_that_begins_takes_up_what_is_recent_and_not_yet_to_come(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "record.db"
    began = clock.now
    recorder, store = Recorder(clock), Store(path)
    for _ in range(3):
        a_minute(recorder, clock)
    store.save(recorder)

    clock.now = began - 7200.0  # set back
    again = Recorder(clock)
    store.fill(again)
    again.answered("m", "q", 0.01, 0.02)
    assert again.records["m", "q"].now.at <= clock.now

    clock.now = began + 60 * 86_400
    late = Recorder(clock)
    store.fill(late)
    assert late.records == {}


def test_a_record_without_a_minute_that_lasts_is_read_and_gone_on_with(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "record.db"
    recorder, store = Recorder(clock), Store(path)
    for _ in range(4):
        a_minute(recorder, clock)
    store.save(recorder)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM cells WHERE kind = 'now'")
    (day,) = read_days(path)["m", "q"]
    assert (day.at, day.answered) == (1_800_000_000 // 86_400 * 86_400, 4)
    found = read_cells(path)["m", "q"]
    assert (found.now.at, [one.answered for one in found.minutes]) == (0, [1, 1, 1, 1])
    again, store = Recorder(clock), Store(path)
    store.fill(again)
    again.answered("m", "q", 0.01, 0.02)
    store.save(again)
    store.close()
    assert sum(one.answered for one in read_days(path)["m", "q"]) == 5


def test_happenings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.deploy.gateway.recording.store.MOST_HAPPENINGS", 10)
    store = Store(tmp_path / "record.db")
    for number in range(25):
        store.happen(Happening(float(number), "alert firing", "m", {"n": number}))
    store.close()
    assert [one.details["n"] for one in read_happenings(store.path)] == list(range(15, 25))


def test_a_damaged_record_is_set_aside_and_one_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(FormatError, match="no record"):
        read_days(path)
    Store(path).close()
    assert (tmp_path / "record.db.damaged").read_bytes().startswith(b"no database")
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA application_id = 99")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(FormatError, match="another program"):
        Store(other)


def test_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    clock = Clock()
    recorder, store = Recorder(clock), Store(tmp_path / "record.db")
    for number in range(40):
        recorder.answered("m", str(number), 0.1, 0.2)

    def happen(writer: int) -> None:
        for number in range(25):
            store.happen(Happening(0.0, "alert firing", "m", {}), **{f"of {writer}": number})
            store.save(recorder)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(happen, range(4)))
    assert [store.get(f"of {writer}") for writer in range(4)] == [24] * 4
    store.close()
    assert len(read_happenings(store.path)) == 100


def test_what_happened_and_what_is_kept_with_it_are_written_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "record.db")
    with pytest.raises(TypeError):
        store.happen(Happening(0.0, "alert firing", "m", {}), alerts=object())
    store.close()
    assert read_happenings(store.path) == []
