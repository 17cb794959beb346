"""Benchmark a net: how fast it runs here, in one engine or in every one that can run it, and how near its roof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tersor.core.errors import EngineError, SchemeError
from tersor.core.evaluation import Benchmark, Metric
from tersor.evaluation.nets.running.choices import Choice
from tersor.evaluation.nets.running.engines import NET_ENGINES, Way, ways
from tersor.evaluation.nets.running.kernels import Kernel, kernels_of
from tersor.evaluation.nets.running.race import Entry, Sizes, likeness_db, race_ways
from tersor.evaluation.nets.running.remembered import remembered, told, way_of
from tersor.evaluation.speed.interleave import RaceProgress
from tersor.evaluation.speed.shares import LARGE_SPREAD
from tersor.evaluation.speed.summary import median_metric, spread
from tersor.evaluation.statistics import quantile_interval
from tersor.files.hashing import sha256
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.scene import Scene, highest, look_around
from tersor.targets.processor import is_busy
from tersor.targets.roofs import measure_roofs

__all__ = ["NetBench", "bench_net", "net_benchmark", "net_kernels"]

FIRST = "onnxruntime"
"""What a net is run in where nothing is said."""
LEAST_LIKENESS_DB = 40.0
"""Outputs further apart than this are called out: rounding in another order gives more."""


@dataclass(frozen=True, slots=True)
class NetBench:
    """What to run, and how often.

    engine   one engine; None: ONNX Runtime
    every    all engines that can run it, side by side
    threads  0: every physical core
    rounds   that count

    Where neither engine nor threads are said, one net runs as `tersor optimize` chose, if that still holds.
    """

    engine: str | None = None
    every: bool = False
    threads: int = 0
    rounds: int = 9
    sizes: Sizes = field(default_factory=Sizes)
    timeout_s: float = 600

    def __post_init__(self) -> None:
        if self.engine is not None and self.every:
            raise SchemeError("every engine or one of them: give engine, or compare them all")
        if self.rounds < 1 or self.threads < 0 or self.sizes.batch < 1 or self.sizes.length < 1:
            raise SchemeError("rounds, batch and length must be positive, threads 0 or more")


def bench_net(
    path: Path,
    how: NetBench,
    *,
    against: Path | None = None,
    command: str = "",
    progress: RaceProgress | None = None,
) -> tuple[Benchmark, ...]:
    """Return the Benchmark of the net, then that of `against`; or that of every engine, the fastest first.

    Raises MissingError, EngineError where no engine runs it, SchemeError for options that do not combine.
    """
    if how.every and against is not None:
        raise SchemeError("engines are compared on one net: leave out against, or the comparison")
    began = time.perf_counter()
    kept = None if against is not None else _kept(path, how)
    scene = look_around(how.threads if kept is None else kept.threads)
    engines = tuple(NET_ENGINES) if how.every else (how.engine or FIRST,)
    chosen = ways(engines, (scene.roofs.threads,), every_setting=False) if kept is None else [way_of(kept)]
    nets = [path] if against is None else [path, against]
    places = [(net, way) for net in nets for way in chosen]
    entries = race_ways(places, how.sizes, rounds=how.rounds, timeout_s=how.timeout_s, progress=progress)
    ran = [entry for entry in entries if entry.blocks]
    if not ran or (against is not None and len(ran) < 2):
        raise EngineError("; ".join(f"{entry.path.name}: {entry.refusal}" for entry in entries if entry.refusal))
    if how.every:
        ran.sort(key=lambda entry: entry.score)
    notes = _notes(entries, ran, scene, same_net=against is None) + (() if kept is None else (told(kept),))
    made = [net_benchmark(entry, scene, how) for entry in ran]
    if kept is not None:
        made = [replace(one, settings={**one.settings, "chosen": kept.date}) for one in made]
    others = [""] * len(made)
    if against is not None:
        made[0], others[0] = replace(made[0], ratios=_ratios(ran[0], ran[1])), against.name
    elif how.every:
        made[1:] = [replace(one, ratios=_ratios(entry, ran[0])) for one, entry in zip(made[1:], ran[1:], strict=True)]
        others[1:] = [ran[0].version] * (len(made) - 1)
    seconds = time.perf_counter() - began
    return tuple(
        replace(one, notes=notes, against=other, command=command, seconds=seconds)
        for one, other in zip(made, others, strict=True)
    )


def _kept(path: Path, how: NetBench) -> Choice | None:
    """Return the choice that is remembered, where nothing that was asked for says otherwise."""
    return None if how.engine is not None or how.every or how.threads else remembered(path, how.sizes)


def net_kernels(path: Path, how: NetBench) -> tuple[tuple[Kernel, ...], Scene, Way]:
    """Return every kernel of the net in its engine with its share of the roof, the machine, and how it ran."""
    if how.every:
        raise SchemeError("the roof is held against the kernels of one engine: leave out the comparison")
    kept = _kept(path, how)
    scene = look_around(how.threads if kept is None else kept.threads)
    threads = scene.roofs.threads
    way = ways((how.engine or FIRST,), (threads,), every_setting=False)[0] if kept is None else way_of(kept)
    first = kernels_of(path, way, how.sizes, scene.roofs, timeout_s=how.timeout_s)
    roofs = highest(scene.roofs, measure_roofs(threads))  # again: work beside may have lowered the first
    factor = {kernel.name: kernel for kernel in first}
    again = kernels_of(path, way, how.sizes, roofs, timeout_s=how.timeout_s)
    best = [_faster(kernel, factor.get(kernel.name)) for kernel in again]
    return tuple(best), replace(scene, roofs=roofs), way


def _faster(kernel: Kernel, other: Kernel | None) -> Kernel:
    """Return the kernel with the shorter of two times."""
    if other is None or other.seconds >= kernel.seconds or other.seconds <= 0:
        return kernel
    share = None if kernel.share is None else kernel.share * kernel.seconds / other.seconds
    return replace(kernel, seconds=other.seconds, share=share)


def net_benchmark(entry: Entry, scene: Scene, how: NetBench) -> Benchmark:
    """Return the Benchmark of one way in a race."""
    settings: dict[str, str | int | float | bool] = {
        "engine": entry.way.engine,
        "threads": entry.way.threads,
        "batch": how.sizes.batch,
        "rounds": len(entry.blocks),
        "inputs": ", ".join(f"{name} {shape}" for name, shape in entry.inputs.items()),
        **entry.way.settings,
    }
    return Benchmark(
        subject=entry.path.name,
        subject_sha256=sha256(entry.path),
        against="",
        engine=entry.version,
        machine=scene.facts(),
        settings=settings,
        metrics=_metrics(entry, how),
        versions=provenance.versions(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _metrics(entry: Entry, how: NetBench) -> tuple[Metric, ...]:
    times = 1e3 * np.asarray(entry.seconds)
    rounds = np.repeat(np.arange(len(entry.blocks)), len(times) // len(entry.blocks))
    found = [Metric("load_s", entry.load_s, "s", units=1)]
    for name, share in (("latency_p50_ms", 0.5), ("latency_p95_ms", 0.95)):
        interval = quantile_interval(times, rounds, share)
        ends = [end if np.isfinite(end) else None for end in (interval.low, interval.high)]
        found.append(Metric(name, interval.value, "ms", ends[0], ends[1], len(entry.blocks)))
    found.append(median_metric("latency_best_ms", [1e3 * block for block in entry.blocks], "ms"))
    rates = [how.sizes.batch / block for block in entry.blocks]
    found.append(median_metric("items_per_s", rates, "items/s"))
    if entry.peak_memory is not None:
        found.append(Metric("peak_memory_bytes", float(entry.peak_memory), "bytes", units=1))
    found.append(Metric("file_bytes", float(entry.path.stat().st_size), "bytes"))
    return tuple(found)


def _ratios(entry: Entry, other: Entry) -> tuple[Metric, ...]:
    """Return entry / other, of rounds that ran side by side."""
    blocks = [a / b for a, b in zip(entry.blocks, other.blocks, strict=True)]
    return (
        median_metric("latency_best_ms", blocks, ""),
        Metric("file_bytes", entry.path.stat().st_size / other.path.stat().st_size, units=1),
    )


def _notes(entries: Sequence[Entry], ran: Sequence[Entry], scene: Scene, *, same_net: bool) -> tuple[str, ...]:
    notes = [f"{entry.way.engine} does not run it: {entry.refusal}" for entry in entries if entry.refusal]
    notes.append(
        "latency_best: the shortest run of each round, their median over rounds; peak memory is of the process"
    )
    for entry in ran[1:] if same_net else ():
        notes += _likeness(entry, ran[0])
    if is_busy(scene.load):
        notes.append(f"the load average was {scene.load:.1f} at the start, on {scene.machine.cores} cores")
    for entry in ran:
        wide = spread(entry.blocks)
        if wide > LARGE_SPREAD:
            notes.append(f"{entry.way.engine}: rounds spread over {wide:.0%} of the median: the machine was busy")
    return tuple(notes)


def _likeness(entry: Entry, other: Entry) -> list[str]:
    """Say that two engines give different numbers for one net, where they do."""
    if entry.output is None or other.output is None or entry.output.shape != other.output.shape:
        return [f"{entry.way.engine} and {other.way.engine} give outputs of different sizes"]
    found = likeness_db(entry.output, other.output)
    if found is None or found >= LEAST_LIKENESS_DB:
        return []
    return [f"{entry.way.engine} and {other.way.engine} differ by {found:.1f} dB: their results are not the same"]
