"""A writer that is killed at any moment leaves the last step that was acknowledged, or the whole step after it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tersor.core.errors import EngineError
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note

from .conftest import NAMES
from .nursery import CYCLE, NOTES

ROOT = Path(__file__).resolve().parents[3]
KILLS = 40
DECISIONS = {"deploy", "shift", "rollback", "undeploy"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    with start("-m", "tests.deploy.registry.nursery") as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def killed(nursery: subprocess.Popen[str], folder: Path, begin: int, seconds: float) -> list[str]:
    """What a child acknowledged from step `begin` on before it was killed."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{begin} {folder}\n")
    nursery.stdin.flush()
    said: list[str] = []
    while not (said and said[-1].startswith("child ")):  # the child may speak before its parent
        said.append(nursery.stdout.readline().strip())
    time.sleep(seconds)
    os.kill(int(said.pop().split()[1]), signal.SIGKILL)
    while not (said and said[-1] == "dead"):
        said.append(nursery.stdout.readline().strip())
    return said[:-1]


def fill(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.gguf").write_bytes(b"GGUF" + name.encode())
    return folder


def steps_in(registry: Registry) -> int:
    """How many steps of the nursery are in the registry; each is there wholly, in order, or not at all."""
    events = registry.events(limit=10_000)
    whats = [event.what for event in events if event.what != "add"]
    count, done = 0, 0
    while done < len(whats):
        what = CYCLE[count % len(CYCLE)].partition(" ")[0]
        size = NOTES if what == "note" else 1
        assert whats[done : done + size] == [what] * size
        done, count = done + size, count + 1
    rows = registry._ledger.database.rows("SELECT action FROM transitions ORDER BY id")
    assert [row["action"] for row in rows] == [what for what in whats if what in DECISIONS]
    verdicts = registry.verdicts("q4") if whats else ()
    assert len(verdicts) == whats.count("verdict")
    assert len(registry.artefacts()) == len(events) - len(whats)
    return count


def expected(count: int) -> tuple[str, str | None] | None:
    """Primary and candidate after so many steps."""
    last = (count - 1) % len(CYCLE)
    if not count or last == 6:
        return None
    return {0: ("full:1", None), 1: ("q4:1", None), 2: ("q4:1", "q8:1")}.get(last, ("q4:1", None))


def test_what_was_acknowledged_survives_every_kill(nursery: subprocess.Popen[str], tmp_path: Path) -> None:
    folder, chance, before, unacknowledged, longest = fill(tmp_path / "r"), random.Random(1), 0, 0, 0.08
    for _ in range(KILLS):
        said = killed(nursery, folder, before, chance.random() * longest)
        numbers = [int(line) for line in said if line != "ready"]
        assert numbers == list(range(before, before + len(numbers)))
        with Registry.open(folder, mode="create") as registry:
            registry.check()
            count = steps_in(registry)
            assert count - before - len(numbers) in (0, 1)
            unacknowledged += count - before - len(numbers)
            now = registry.serving("chat")
            assert (None if now is None else (now.artefact, now.candidate)) == expected(count)
        if count < before + 2:  # on a busy machine a step takes longer
            longest = min(2 * longest, 4.0)
        elif count > before + 8:
            longest /= 2
        before = count
    assert before > KILLS, "hardly a step was taken between two kills: the test proves little"


def test_a_kill_while_it_is_made_leaves_nothing_in_the_way(nursery: subprocess.Popen[str], tmp_path: Path) -> None:
    chance, unfinished = random.Random(2), 0
    for number in range(KILLS // 2):
        folder = fill(tmp_path / str(number))
        said = killed(nursery, folder, 0, chance.random() * 0.02)
        unfinished += "ready" not in said
        with Registry.open(folder, mode="create") as registry:
            registry.check()
            steps_in(registry)
            for name in NAMES:
                assert registry.add_artefact(name, folder / f"{name}.gguf", who="ann").version == 1
    assert unfinished, "no run was hit while it made the registry: the test proves nothing"


def test_a_reader_opens_what_a_killed_writer_left(nursery: subprocess.Popen[str], tmp_path: Path) -> None:
    folder = fill(tmp_path / "r")
    said: list[str] = []
    while len(said) < 3:
        said = killed(nursery, folder, 0, 0.2)
    assert (folder / "registry.db-wal").stat().st_size > 0  # the commits lie there, and nobody has moved them
    with Registry.open(folder) as registry:
        assert steps_in(registry) >= len(said) - 1


WRITER = """
import sys, pathlib
from tersor.deploy.registry.registry import Registry
from tersor.deploy.registry.rows import Note
with Registry.open(pathlib.Path(sys.argv[1]), mode="write", wait_s=30, is_exclusive=sys.argv[3] == "alone") as registry:
    print("ready", flush=True)
    for number in range(int(sys.argv[2])):
        registry.note(Note("work", "chat", sys.argv[3], {"number": number}))
    sys.stdin.readline()
"""


def test_two_writers_take_turns_and_lose_nothing(registry: Registry, folder: Path) -> None:
    children = [start("-c", WRITER, str(folder), "60", name) for name in ("one", "two")]
    with Registry.open(folder) as reader:
        while sum(event.what == "work" for event in reader.events(limit=10_000)) < 120:
            for name in ("one", "two"):
                seen = [event.details["number"] for event in reader.events(limit=10_000) if event.who == name]
                assert seen == list(range(len(seen)))
            assert all(child.poll() is None for child in children)
        ids = [event.id for event in reader.events(limit=10_000)]
    assert ids == list(range(1, len(ids) + 1))
    for child in children:
        child.communicate("\n", timeout=30)
        assert child.returncode == 0


def test_the_right_to_write_ends_with_the_process_that_is_killed(registry: Registry, folder: Path) -> None:
    with start("-c", WRITER, str(folder), "0", "alone") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(EngineError, match=f"process {child.pid} is writing this registry"):
            registry.note(Note("late", "chat", "ann", {}))
        assert registry.artefact("q4").version == 1  # reading goes on
        child.kill()
        child.wait()
        registry.note(Note("free", "chat", "ann", {}))
    assert registry.events()[-1].what == "free"
