from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import EngineError
from tersor.engines.llama_cpp import empty_engine
from tersor.evaluation.speed.interleave import Side, measure, race
from tersor.evaluation.speed.runners import RUNNERS, Runner, runner_for
from tersor.evaluation.speed.traffic import gguf_traffic
from tersor.evaluation.speed.workload import Workload
from tersor.targets.energy import Meter

WORK = Workload(prompt=4, generate=3, batches=(1, 2, 4), rounds=2, warmups=1, loads=2, timeout_s=30)


@dataclass
class Recorded:
    """An engine that writes down what it is asked for; every operation takes as many nanoseconds as was agreed."""

    name: str
    log: list[tuple[str, str, int]]
    fails_at: int = -1
    vocabulary_size: int = 10
    load_s: float = 0.5
    pid: int | None = None
    is_open: bool = True
    sequences: int = 0
    calls: int = 0

    def timed(self, operation: str, **fields: int | Sequence[Sequence[int]]) -> dict[str, Any]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise EngineError(f"{self.name} died")
        sequences, prompts, steps = fields["sequences"], fields.get("prompts"), fields.get("steps", 0)
        assert isinstance(sequences, int)
        assert isinstance(steps, int)
        self.log.append((self.name, operation, len(prompts) if isinstance(prompts, list) else sequences))
        if operation == "time_open":
            return {"loaded_bytes": 7}
        if operation == "time_prompt":
            return {"evaluated_ns": 2_000_000, "first_token_ns": 3_000_000}
        return {"step_ns": [1_000_000 * sequences] * steps, "ids": []}

    def version(self) -> str:
        return f"engine {self.name}"

    def close(self) -> None:
        self.is_open = False


@dataclass
class Stable:
    """A runner whose engines are recorded ones."""

    log: list[tuple[str, str, int]] = field(default_factory=list)
    engines: list[Recorded] = field(default_factory=list)

    def runner(self, **settings: Any) -> Runner:
        def opens(path: Path, _workload: Workload) -> Recorded:
            self.log.append((path.name, "load", 1))
            self.engines.append(Recorded(path.name, self.log, **settings))
            return self.engines[-1]

        return Runner(
            suits=lambda _: True,
            opens=opens,
            empty=lambda threads, timeout: empty_engine(threads=threads, timeout_s=timeout),
            traffic=gguf_traffic,
        )


def raced(workload: Workload = WORK) -> tuple[Stable, list[Side]]:
    stable = Stable()
    sides = [Side(Path(name), stable.runner()) for name in "AB"]
    race(sides, workload, sleep=lambda _: None)
    return stable, sides


def test_the_sides_run_in_turn_from_the_first_load_to_the_last_round() -> None:
    """Once for memory; then a warm-up and two rounds of a prompt and three batches each."""
    stable, _ = raced()
    loads = [name for name, operation, _ in stable.log if operation == "load"]
    assert loads == ["A", "B", "A", "B"]
    prompts = [name for name, operation, _ in stable.log if operation == "time_prompt"]
    assert prompts == ["A", "B"] + (["A"] * 4 + ["B"] * 4) * 3


def test_a_round_is_a_prompt_its_continuation_and_each_batch() -> None:
    stable, _ = raced()
    last = [row for row in stable.log if row[0] == "B"][-11:]
    assert [(operation, count) for _, operation, count in last] == [
        ("time_prompt", 1), ("time_generation", 1),
        ("time_open", 4), ("time_prompt", 1), ("time_generation", 4),
        ("time_open", 4), ("time_prompt", 2), ("time_generation", 4),
        ("time_open", 4), ("time_prompt", 4), ("time_generation", 4),
    ]  # fmt: skip


def test_warm_ups_do_not_count_and_times_become_seconds() -> None:
    _, sides = raced()
    for side in sides:
        assert side.loads == [0.5, 0.5]
        assert len(side.readings) == WORK.rounds
        reading = side.readings[0]
        assert (reading.evaluated, reading.first_token, reading.steps) == (0.002, 0.003, (0.001,) * 3)
        assert reading.batches == pytest.approx({1: 250.0, 2: 500.0, 4: 1000.0})  # steps of 4 ms
        assert (side.version, side.loaded_bytes) == (f"engine {side.path}", 7)


def test_both_sides_get_the_same_prompts_and_sequences_get_different_ones() -> None:
    assert WORK.prompts(2, 4, 10) == WORK.prompts(2, 4, 10)
    first, second = WORK.prompts(2, 30, 1000)
    assert first != second
    assert all(0 <= token < 1000 for token in first)


def test_progress_counts_every_load_and_round_once() -> None:
    stable, told = Stable(), list[tuple[int, int]]()
    sides = [Side(Path("A"), stable.runner())]
    race(sides, WORK, progress=lambda _, done, total: told.append((done, total)), sleep=lambda _: None)
    assert told == [(index + 1, 5) for index in range(5)]


@pytest.mark.parametrize("call", [1, 2, 9, 15])
def test_when_one_side_fails_all_engines_are_closed(call: int) -> None:
    stable = Stable()
    sides = [Side(Path("A"), stable.runner()), Side(Path("B"), stable.runner(fails_at=call))]
    with pytest.raises(EngineError, match="B died"):
        race(sides, WORK, sleep=lambda _: None)
    assert [engine.is_open for engine in stable.engines] == [False] * 4


def test_an_engine_with_nothing_to_say_is_refused() -> None:
    stable = Stable()
    with pytest.raises(EngineError, match="A has an empty vocabulary"):
        race([Side(Path("A"), stable.runner(vocabulary_size=0))], WORK, sleep=lambda _: None)


def test_energy_is_that_of_the_continuation(tmp_path: Path) -> None:
    counter = tmp_path / "energy_uj"
    counter.write_text("100")

    class Hungry(Recorded):
        def timed(self, operation: str, **fields: int | Sequence[Sequence[int]]) -> dict[str, Any]:
            spent = 5000 if operation == "time_prompt" else 300
            counter.write_text(str(int(counter.read_text()) + spent))
            return super().timed(operation, **fields)

    meter = Meter(((counter, 1 << 40),))
    assert measure(Hungry("A", []), WORK, meter).joules == pytest.approx(300e-6)
    assert measure(Recorded("A", []), WORK).joules is None


def children() -> int:
    """Children of this process, zombies included."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            found += int(entry.read_text().rpartition(")")[2].split()[1]) == os.getpid()
        except OSError:
            continue
    return found


@pytest.fixture
def path(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf()


def test_memory_is_that_of_the_model_above_an_empty_engine(path: Path) -> None:
    side = Side(path, RUNNERS["llama.cpp"])
    race([side], Workload(prompt=8, generate=2, batches=(1,), rounds=1, loads=1, timeout_s=30))
    peak, steady = side.memory.peak, side.memory.steady
    if peak is None or steady is None:
        pytest.skip("this system does not tell what a process takes")
    assert side.loaded_bytes < steady <= peak < 64 << 20  # the weights, a cache of 256 tokens, and buffers


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="this system has no /proc")
def test_a_broken_file_beside_a_sound_one_leaves_no_process(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:5000])
    before = children()
    with pytest.raises(EngineError, match=r"llama\.cpp, loading .*broken\.gguf"):
        race([Side(path, RUNNERS["llama.cpp"]), Side(broken, RUNNERS["llama.cpp"])], WORK)
    assert children() == before


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="this system has no /proc")
def test_an_engine_that_takes_too_long_is_ended(path: Path) -> None:
    before = children()
    with pytest.raises(EngineError, match=r"time_generation .*timed out after 1 s"):
        race(
            [Side(path, RUNNERS["llama.cpp"])],
            Workload(prompt=4, generate=200_000, batches=(), rounds=1, loads=1, timeout_s=1),
        )
    assert children() == before


def test_the_engine_is_chosen_by_what_the_path_holds(path: Path, tmp_path: Path) -> None:
    assert runner_for(path)[0] == "llama.cpp"
    (tmp_path / "config.json").write_text("{}")
    assert runner_for(tmp_path)[0] == "transformers"
