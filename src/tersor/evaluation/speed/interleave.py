"""Run the sides in turn, A B A B: what disturbs the machine for a minute disturbs both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tersor.core.errors import EngineError
from tersor.evaluation.speed.runners import Engine, Runner, heeded
from tersor.evaluation.speed.workload import Memory, Reading, Workload
from tersor.targets.energy import Meter
from tersor.targets.memory import footprint

__all__ = ["RaceProgress", "Side", "race"]

SETTLE_S = 0.01
"""Threads of an engine that has just answered go on spinning for a few milliseconds."""


class RaceProgress(Protocol):
    """Called after every load and every round of a side."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """`done` of `total` pieces of work, each about as long, are done; the last was `what`."""


@dataclass(slots=True)
class Side:
    """One artefact in the race, and what was found out about it."""

    path: Path
    runner: Runner
    version: str = ""
    loads: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(None, None))
    loaded_bytes: int = 0


def race(
    sides: Sequence[Side],
    workload: Workload,
    *,
    meter: Meter | None = None,
    progress: RaceProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Load, warm up and measure the sides in turn and write what was found into them.

    Raises EngineError of the side that failed; no process of any side is left.
    """
    total = len(sides) * (workload.loads + workload.warmups + workload.rounds)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    empty = [_empty_bytes(side.runner, workload) for side in sides]
    with ExitStack() as stack:
        engines: list[Engine] = []
        for index in range(workload.loads):
            for side in sides:
                engine = side.runner.opens(side.path, heeded(side.path, side.runner, workload))
                side.loads.append(engine.load_s)
                if index < workload.loads - 1:
                    engine.close()
                else:
                    stack.callback(engine.close)
                    engines.append(engine)
                tell(f"loading {side.path.name}")
        for side, engine, bare in zip(sides, engines, empty, strict=True):
            if engine.vocabulary_size < 1:
                raise EngineError(f"{side.path} has an empty vocabulary: there is nothing to generate")
            side.version = engine.version()
            side.loaded_bytes = _open(engine, 1, workload)
            _single(engine, workload, None)
            side.memory = _memory(engine, bare)
        for index in range(workload.warmups + workload.rounds):
            for side, engine in zip(sides, engines, strict=True):
                sleep(SETTLE_S)
                reading = measure(engine, workload, meter)
                if index >= workload.warmups:
                    side.readings.append(reading)
                tell(f"round {index + 1}, {side.path.name}")


def measure(engine: Engine, workload: Workload, meter: Meter | None = None) -> Reading:
    """Return one round of one engine."""
    reading = _single(engine, workload, meter)
    rates = {size: _throughput(engine, size, workload) for size in workload.batches}
    return Reading(reading.evaluated, reading.first_token, reading.steps, rates, reading.joules)


def _single(engine: Engine, workload: Workload, meter: Meter | None) -> Reading:
    """Return the prompt and its continuation; the energy is that of the continuation."""
    prompts = workload.prompts(1, workload.prompt, engine.vocabulary_size)
    read = engine.timed("time_prompt", sequences=1, prompts=prompts)
    before = meter.read() if meter is not None else ()
    made = engine.timed("time_generation", sequences=1, steps=workload.generate)
    joules = meter.joules(before, meter.read()) if meter is not None else None
    steps = tuple(step / 1e9 for step in made["step_ns"])
    return Reading(read["evaluated_ns"] / 1e9, read["first_token_ns"] / 1e9, steps, {}, joules)


def _throughput(engine: Engine, size: int, workload: Workload) -> float:
    """Return tokens per second of `size` sequences that grow side by side."""
    most = max(workload.batches)
    _open(engine, most, workload)
    prompts = workload.prompts(size, workload.batch_prompt, engine.vocabulary_size)
    engine.timed("time_prompt", sequences=most, prompts=prompts)
    times: list[int] = engine.timed("time_generation", sequences=most, steps=workload.generate)["step_ns"]
    return size * len(times) / (sum(times) / 1e9)


def _open(engine: Engine, sequences: int, workload: Workload) -> int:
    context = workload.context if sequences == 1 else workload.batch_prompt + workload.generate + 1
    answer = engine.timed("time_open", sequences=sequences, context=context, threads=workload.threads)
    return int(answer["loaded_bytes"])


def _empty_bytes(runner: Runner, workload: Workload) -> int | None:
    child = runner.empty(workload.threads, workload.timeout_s)
    try:
        found = footprint(child.pid) if child.pid is not None else None
    finally:
        child.close()
    return None if found is None else found.resident


def _memory(engine: Engine, empty: int | None) -> Memory:
    found = footprint(engine.pid) if engine.pid is not None else None
    if found is None or empty is None:
        return Memory(None, None)
    return Memory(None if found.peak is None else found.peak - empty, found.resident - empty)
