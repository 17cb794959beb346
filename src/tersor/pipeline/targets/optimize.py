"""Choose the engine, threads and settings that run an artefact fastest here, by measuring, and remember the choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.core.records import read_text
from tersor.evaluation.nets.running.choices import Choice, Choices, Tried, choices_path
from tersor.evaluation.nets.running.choosing import best_way
from tersor.evaluation.nets.running.engines import NET_ENGINES, Clock, Loaded, Way, installed, ways
from tersor.evaluation.nets.running.race import Entry, Sizes, likeness_db
from tersor.evaluation.speed.interleave import RaceProgress, Side, race
from tersor.evaluation.speed.runners import RUNNERS
from tersor.evaluation.speed.workload import Workload
from tersor.files.atomic import atomic_writer
from tersor.files.hashing import sha256
from tersor.targets.processor import Processor, busy_cores, processor

__all__ = ["Optimized", "optimize"]

TARGETS = ("cpu",)
LEAST_LIKENESS_DB = 20.0
"""An engine whose output is further from the first engine's is not taken: it computes something else. Engines that
round the same integers in another order stay above."""
MAX_BYTES = 1 << 24


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
        return Way(self.choice.engine, self.choice.threads, self.choice.settings)

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
    """What is tried: numbers of threads, engines, rounds of the final race."""

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
    batch, length  of free axes of a net's inputs
    rounds         of the race among the best
    again          measure although a choice is remembered
    clock          "processor" tells processor time, which other work does not lengthen; for nets and one thread

    A choice holds for the bytes of the artefact, the processor with its cores, and the shape of inputs; it is measured
    anew where an engine has another release. Raises SchemeError, MissingError, EngineError where nothing runs it.
    """
    if target not in TARGETS:
        raise SchemeError(f"artefacts are optimized for {', '.join(TARGETS)}, not {target!r}")
    if rounds < 1 or batch < 1 or length < 1 or any(count < 1 for count in threads):
        raise SchemeError("rounds, batch, length and threads must be positive")
    if clock == "processor" and tuple(threads) != (1,):
        raise SchemeError("processor time of several threads is no measure of speed: give threads=(1,)")
    path, began, machine = _checked(Path(artefact).expanduser(), clock), time.perf_counter(), processor()
    digest, place, sizes = sha256(path), output or choices_path(path), Sizes(batch, length)
    known, load = _read_choices(place), busy_cores()
    found = known.find(digest, _fingerprint(machine), batch, length)
    if found is not None and not again and _is_current(found):
        return Optimized(path, found, False, time.perf_counter() - began, place)
    counts = tuple(threads) or tuple(dict.fromkeys((machine.physical, machine.cores, 1)))
    search = _Search(counts, _engines(path, engines), rounds, clock, timeout_s)
    measured = _net if path.suffix == ".onnx" else _language
    choice = _choice(measured(path, search, sizes, progress), digest, sizes, machine, search)
    with atomic_writer(place) as file:
        file.write(known.with_choice(choice).to_json().encode())
    return Optimized(path, choice, True, time.perf_counter() - began, place, load)


def _choice(tried: Sequence[Tried], digest: str, sizes: Sizes, machine: Processor, search: _Search) -> Choice:
    """Return what is remembered: the first of those tried, and all of them."""
    best = tried[0]
    assert best.best_ms is not None, "the first of those tried ran"
    return Choice(
        artefact_sha256=digest,
        machine=_fingerprint(machine),
        engine=best.engine,
        threads=best.threads,
        settings=best.settings,
        batch=sizes.batch,
        length=sizes.length,
        best_ms=best.best_ms,
        tried=tuple(tried),
        versions=_versions(search.engines),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _checked(path: Path, clock: Clock) -> Path:
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    if path.suffix not in (".onnx", ".gguf"):
        raise UnsupportedError(f"{path}: engines are chosen for .onnx and .gguf files")
    if clock != "wall" and path.suffix == ".gguf":
        raise SchemeError("llama.cpp is timed by the clock on the wall: processor time is for nets")
    return path


def _read_choices(path: Path) -> Choices:
    """Read a file of choices, nothing where there is none; FormatError where it is something else."""
    if not path.is_file():
        return Choices()
    text = read_text(path, most=MAX_BYTES, too_large="no choices are that many")
    return Choices.from_json(text, place=str(path))


def _fingerprint(machine: Processor) -> str:
    return f"{machine.name}, {machine.cores} cores, {machine.physical} physical: {' '.join(machine.flags)}"


def _is_current(choice: Choice) -> bool:
    """Whether the chosen engine is there, and every one that was tried has the release it was tried in."""
    if choice.engine in NET_ENGINES and installed(choice.engine):
        return False
    return dict(choice.versions) == _versions(tuple(choice.versions))


def _versions(engines: Sequence[str]) -> dict[str, str]:
    packages = {"llama.cpp": "xllamacpp", **{name: row.package for name, row in NET_ENGINES.items()}}
    found = {}
    for name in engines:
        try:
            found[name] = version(packages[name])
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


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
    final, first = best_way(
        path,
        every,
        sizes,
        rounds=search.rounds,
        clock=search.clock,
        timeout_s=search.timeout_s,
        progress=progress,
        agrees=_agree,
    )
    finalists = [entry.way for entry in final]
    reference = next(entry for entry in first if entry.blocks)
    tried = [_tried(entry, "" if place == 0 else "slower") for place, entry in enumerate(final)]
    for entry in sorted(first, key=lambda each: each.score):
        if entry.way not in finalists:
            why = entry.refusal or ("slower" if _agree(entry, reference) else "its results differ from the first's")
            tried.append(_tried(entry, why))
    return tried


def _tried(entry: Entry, note: str) -> Tried:
    best = 1e3 * entry.score if entry.blocks else None
    return Tried(entry.way.engine, entry.way.threads, dict(entry.way.settings), best, note)


def _agree(entry: Entry, other: Entry) -> bool:
    if entry.output is None or other.output is None or entry.output.shape != other.output.shape:
        return False
    found = likeness_db(entry.output, other.output)
    return found is None or found >= LEAST_LIKENESS_DB


def _language(path: Path, search: _Search, _sizes: Sizes, progress: RaceProgress | None) -> list[Tried]:
    """Try numbers of threads in llama.cpp, by the time of a generated token."""
    results = []
    for threads in search.threads:
        work = Workload(32, 16, (), search.rounds, 1, 1, threads=threads, timeout_s=search.timeout_s)
        side = Side(path, RUNNERS["llama.cpp"])
        race([side], work, progress=progress)
        best = sorted(min(reading.steps) for reading in side.readings)
        results.append(Tried("llama.cpp", threads, {}, 1e3 * best[len(best) // 2], "slower"))
    results.sort(key=lambda row: row.best_ms or 0.0)
    return [replace(results[0], note=""), *results[1:]]
