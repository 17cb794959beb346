"""Choose the engine, threads and settings that run an artefact fastest here, by measuring, and remember the choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.nets.running.choices import SLOWER, Choice, Tried, choices_path
from tersor.evaluation.nets.running.choosing import MORE, MORE_S, Placed, best_way
from tersor.evaluation.nets.running.engines import NET_ENGINES, Clock, Loaded, Way, installed, ways
from tersor.evaluation.nets.running.race import Entry, Sizes, likeness_db
from tersor.evaluation.nets.running.remembered import fingerprint, is_current, read_choices, releases, way_of
from tersor.evaluation.speed.deciding import leader, paired_ratio, undecided
from tersor.evaluation.speed.interleave import SETTLE_S, RaceProgress
from tersor.evaluation.speed.workload import Workload
from tersor.files.atomic import atomic_writer
from tersor.files.hashing import sha256
from tersor.targets.processor import Processor, busy_cores, processor

__all__ = ["Optimized", "optimize"]

TARGETS = ("cpu",)
LEAST_LIKENESS_DB = 20.0
"""An engine whose output is further from the first engine's is not taken: it computes something else. Engines that
round the same integers in another order stay above."""


@dataclass(frozen=True, slots=True)
class Optimized:
    """An artefact and the choice that was made for it.

    fresh    whether it was measured now, not remembered
    seconds  that took
    path     where the choice is kept
    load     the load average before it was measured; None where nobody counts
    """

    artefact: Path
    choice: Choice
    fresh: bool
    seconds: float
    path: Path
    load: float | None = None

    def way(self) -> Way:
        """Return how the artefact is run."""
        return way_of(self.choice)

    def open(self, *, timeout_s: float = 600) -> Loaded:
        """Return the net in the engine that was chosen, in a process of its own; UnsupportedError for a GGUF."""
        if self.choice.engine not in NET_ENGINES:
            raise UnsupportedError(
                f"{self.artefact}: run it in {self.choice.engine} with {self.choice.threads} threads"
            )
        batch, length = self.choice.batch, self.choice.length
        return Loaded(self.artefact, self.way(), batch=batch, length=length, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is tried: numbers of threads, engines, rounds of the final race; `asked` as a choice remembers it."""

    asked: str
    threads: tuple[int, ...]
    engines: tuple[str, ...]
    rounds: int
    clock: Clock
    timeout_s: float


def optimize(
    artefact: str | Path,
    *,
    target: str = "cpu",
    output: Path | None = None,
    engines: Sequence[str] | None = None,
    threads: Sequence[int] = (),
    batch: int = 1,
    length: int = 128,
    rounds: int = 15,
    again: bool = False,
    clock: Clock = "wall",
    timeout_s: float = 600,
    progress: RaceProgress | None = None,
) -> Optimized:
    """Return what runs `artefact`, an ONNX net or a GGUF, fastest on this machine.

    target         "cpu"
    output         file that remembers the choice; None: NAME.choices.json beside the artefact
    engines        to try; None: all that are installed
    threads        numbers to try; none: one, every physical core, every core
    batch, length  of free axes of a net's inputs; a GGUF has none
    rounds         of the race among the best, at least: up to four times as many while two are close
    again          measure although a choice is remembered
    clock          "processor" tells processor time, which other work does not lengthen; for nets and one thread

    A choice holds for the bytes of the artefact, the processor with its cores, the shape of inputs, and what was asked
    to be tried; it is measured anew where an engine has another release. Raises SchemeError, MissingError, EngineError
    where nothing runs it.
    """
    if target not in TARGETS:
        raise SchemeError(f"artefacts are optimized for {', '.join(TARGETS)}, not {target!r}")
    if rounds < 1 or batch < 1 or length < 1 or any(count < 1 for count in threads):
        raise SchemeError("rounds, batch, length and threads must be positive")
    if clock == "processor" and tuple(threads) != (1,):
        raise SchemeError("processor time of several threads is no measure of speed: give threads=(1,)")
    path, began, machine = _checked(Path(artefact).expanduser(), clock), time.perf_counter(), processor()
    sizes = Sizes(batch, length)
    if path.suffix == ".gguf" and sizes != Sizes():
        raise SchemeError("batch and length are of the inputs of nets: leave them out for a GGUF")
    digest, place = sha256(path), output or choices_path(path)
    known, load = read_choices(place), busy_cores()
    found = known.find(digest, fingerprint(machine), batch, length)
    counts = tuple(dict.fromkeys(threads or (machine.physical, machine.cores, 1)))
    asked = _asked(engines, threads, clock)
    search = _Search(asked, counts, _engines(path, engines), rounds, clock, timeout_s)
    if found is not None and not again and is_current(found) and found.searched == asked:
        return Optimized(path, found, False, time.perf_counter() - began, place)
    measured = _net if path.suffix == ".onnx" else _language
    choice = _choice(measured(path, search, sizes, progress), digest, sizes, machine, search)
    with atomic_writer(place) as file:
        file.write(known.with_choice(choice).to_json().encode())
    return Optimized(path, choice, True, time.perf_counter() - began, place, load)


def _asked(engines: Sequence[str] | None, threads: Sequence[int], clock: Clock) -> str:
    """Return what was asked for in words; "" where nothing was, so that all is tried."""
    parts = [] if engines is None else ["engines " + ", ".join(sorted(engines))]
    parts += ["threads " + ", ".join(map(str, sorted(threads)))] if threads else []
    return "; ".join([*parts, *(() if clock == "wall" else (f"clock {clock}",))])


def _choice(tried: Sequence[Tried], digest: str, sizes: Sizes, machine: Processor, search: _Search) -> Choice:
    """Return what is remembered: the first of those tried, and all of them."""
    best = tried[0]
    assert best.best_ms is not None, "the first of those tried ran"
    return Choice(
        artefact_sha256=digest,
        machine=fingerprint(machine),
        engine=best.engine,
        threads=best.threads,
        settings=best.settings,
        batch=sizes.batch,
        length=sizes.length,
        best_ms=best.best_ms,
        tried=tuple(tried),
        versions=releases(search.engines),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        searched=search.asked,
    )


def _checked(path: Path, clock: Clock) -> Path:
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    if path.suffix not in (".onnx", ".gguf"):
        raise UnsupportedError(f"{path}: engines are chosen for .onnx and .gguf files")
    if clock != "wall" and path.suffix == ".gguf":
        raise SchemeError("llama.cpp is timed by the clock on the wall: processor time is for nets")
    return path


def _engines(path: Path, named: Sequence[str] | None) -> tuple[str, ...]:
    if path.suffix == ".gguf":
        if named is not None and tuple(named) != ("llama.cpp",):
            raise SchemeError("a GGUF is run by llama.cpp")
        return ("llama.cpp",)
    absent = {name: installed(name) for name in named or NET_ENGINES}
    found = tuple(name for name, reason in absent.items() if not reason)
    if not found or (named is not None and len(found) < len(absent)):
        raise MissingError("; ".join(f"{name}: {reason}" for name, reason in absent.items() if reason))
    return found


def _net(path: Path, search: _Search, sizes: Sizes, progress: RaceProgress | None) -> list[Tried]:
    """Try every engine in all its ways; those whose results differ from the first are not taken."""
    every = ways(search.engines, search.threads, every_setting=True)
    placed = best_way(
        path,
        every,
        sizes,
        rounds=search.rounds,
        clock=search.clock,
        timeout_s=search.timeout_s,
        progress=progress,
        agrees=_agree,
    )
    best_ms = 1e3 * placed[0].entry.score
    return [_tried(one, best_ms, is_best=not place) for place, one in enumerate(placed)]


def _tried(one: Placed, best_ms: float, *, is_best: bool) -> Tried:
    way, note = one.entry.way, "" if is_best else SLOWER
    if one.ratio is None:
        return Tried(way.engine, way.threads, dict(way.settings), None, one.entry.refusal)
    if not one.agrees:
        note = "its results differ from the first's"
    return Tried(way.engine, way.threads, dict(way.settings), best_ms * one.ratio, note)


def _agree(entry: Entry, other: Entry) -> bool:
    if entry.output is None or other.output is None or entry.output.shape != other.output.shape:
        return False
    found = likeness_db(entry.output, other.output)
    return found is None or found >= LEAST_LIKENESS_DB


def _language(path: Path, search: _Search, _sizes: Sizes, progress: RaceProgress | None) -> list[Tried]:
    """Try numbers of threads in llama.cpp, in turn in one process, by the shortest time of a generated token."""
    work = Workload(32, 16, (), search.rounds, 1, 1, threads=max(search.threads), timeout_s=search.timeout_s)
    blocks: list[list[float]] = [[] for _ in search.threads]
    racing, total, done, end = list(range(len(blocks))), len(blocks) * (search.rounds + 1), 0, float("inf")
    with LlamaCpp(path, context=0, threads=work.threads, timeout_s=work.timeout_s) as engine:
        prompts = work.prompts(1, work.prompt, engine.vocabulary_size)
        engine.timed("time_open", sequences=1, context=work.context, threads=work.threads)
        for number in range(-1, MORE * search.rounds):  # the first round warms up
            if number == search.rounds:
                end = time.monotonic() + MORE_S
            if time.monotonic() > end:
                break
            if number >= search.rounds:
                racing = [racing[index] for index in undecided([blocks[index] for index in racing])]
                total += len(racing)
            if not racing:
                break
            turn = number % len(racing)
            for index in (*racing[turn:], *racing[:turn]):
                time.sleep(SETTLE_S)
                threads, done = search.threads[index], done + 1
                engine.timed("time_prompt", sequences=1, prompts=prompts, threads=threads)
                steps = engine.timed("time_generation", sequences=1, steps=work.generate, threads=threads)["step_ns"]
                if number >= 0:
                    blocks[index].append(min(steps) / 1e9)
                if progress is not None:
                    progress(f"round {number + 2}, {threads} threads", done, total)
    best = leader(blocks)
    best_ms = 1e3 * float(np.quantile(blocks[best], 0.25))
    ratios = [paired_ratio(times, blocks[best]) for times in blocks]
    order = sorted(range(len(blocks)), key=lambda index: (index != best, ratios[index]))
    return [
        Tried("llama.cpp", search.threads[index], {}, best_ms * ratios[index], SLOWER if place else "")
        for place, index in enumerate(order)
    ]
