"""Benchmark an artefact: how fast it runs here, beside another, and how far from what the machine could do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.core.evaluation import Benchmark, Limit, Metric
from tersor.evaluation.limits import judge
from tersor.evaluation.speed.interleave import RaceProgress, Side, race
from tersor.evaluation.speed.runners import runner_for
from tersor.evaluation.speed.shares import noise_notes, share_notes, with_shares
from tersor.evaluation.speed.summary import LEAST_ROUNDS, metrics_of, ratios_of
from tersor.evaluation.speed.traffic import Traffic
from tersor.evaluation.speed.workload import Workload
from tersor.files.gguf import split_paths
from tersor.files.hashing import sha256
from tersor.models.hub import fetch, looks_like_id
from tersor.pipeline.steps import cards, provenance
from tersor.targets.energy import Meter, open_meter
from tersor.targets.memory import available_bytes
from tersor.targets.processor import Processor, busy_cores, processor
from tersor.targets.roofs import Roofs, measure_roofs

__all__ = ["bench"]

_PACKAGES = ("xllamacpp", "transformers", "torch")


@dataclass(frozen=True, slots=True)
class _Scene:
    """What holds for all sides: the machine and its roofs, as they were at the start."""

    machine: Processor
    roofs: Roofs
    load: float | None
    meter: Meter | str

    def facts(self) -> dict[str, str | int | float]:
        """Return them for the Benchmark; rates in decimal units."""
        found: dict[str, str | int | float] = {
            "processor": self.machine.name,
            "cores": self.machine.cores,
            "threads": self.roofs.threads,
            "instructions": " ".join(self.machine.flags),
            "read_bytes_per_s": self.roofs.read_bytes_per_s,
            "float32_operations_per_s": self.roofs.float_flops,
            "roofs_measured_by": self.roofs.method,
        }
        if self.roofs.byte_ops is not None:
            found["int8_operations_per_s"] = self.roofs.byte_ops
        if self.machine.cache_bytes is not None:
            found["last_level_cache_bytes"] = self.machine.cache_bytes
        if self.load is not None:
            found["load_average"] = self.load
        return found


def bench(
    artefact: str | Path,
    *,
    against: str | Path | None = None,
    threads: int = 0,
    prompt: int = 256,
    generate: int = 64,
    batches: Sequence[int] = (1, 2, 4, 8),
    rounds: int = 9,
    max_latency_ratio: float | None = None,
    min_tokens_per_s: float | None = None,
    timeout_s: float = 600,
    save: bool = True,
    command: str = "",
    progress: RaceProgress | None = None,
) -> tuple[Benchmark, ...]:
    """Measure `artefact`, a GGUF or a folder of Hugging Face form, and return its Benchmark, then that of `against`.

    against            another artefact or model; both run in turn, round by round
    threads            of the engines and of the roofs; 0: every physical core this process may use
    prompt, generate   tokens of a round
    batches            numbers of parallel sequences to measure the throughput of
    max_latency_ratio  largest allowed ratio of the median time per token to that of `against`
    min_tokens_per_s   smallest allowed speed of generation
    timeout_s          longest wait for loading and for each step of a round

    With `save` the Card beside the artefact takes the result in, where one lies there. Raises MissingError and
    UnsupportedError for what cannot be run, EngineError where an engine fails; SchemeError for options that do not
    combine.
    """
    if max_latency_ratio is not None and against is None:
        raise SchemeError("max_latency_ratio compares with another artefact: name it with against")
    if rounds < LEAST_ROUNDS and (max_latency_ratio is not None or min_tokens_per_s is not None):
        raise SchemeError(f"limits need at least {LEAST_ROUNDS} rounds, got {rounds}: fewer give no 95 % interval")
    began = time.perf_counter()
    machine = processor()
    workload = Workload(
        prompt, generate, tuple(batches), rounds, threads=threads or machine.physical, timeout_s=timeout_s
    )
    paths = [_located(place) for place in (artefact, against) if place is not None]
    chosen = [runner_for(path) for path in paths]
    traffics = [_traffic(path, row.traffic) for path, (_, row) in zip(paths, chosen, strict=True)]
    load, meter = busy_cores(), open_meter()
    scene = _Scene(machine, measure_roofs(workload.threads), load, meter)
    sides = [Side(path, row) for path, (_, row) in zip(paths, chosen, strict=True)]
    race(sides, workload, meter=meter if isinstance(meter, Meter) else None, progress=progress)
    made = [_benchmark(side, traffic, scene, workload) for side, traffic in zip(sides, traffics, strict=True)]
    general = (*noise_notes(sides, workload, load, machine.cores), *_memory_notes(paths), *_energy_note(meter))
    ratios = ratios_of(sides[0], sides[1], workload, (_size(paths[0]), _size(paths[1]))) if against is not None else ()
    subject = replace(made[0], against=paths[1].name if against is not None else "", ratios=ratios, command=command)
    subject = replace(subject, limits=_limits(subject, max_latency_ratio, min_tokens_per_s))
    seconds = time.perf_counter() - began
    results = [replace(one, notes=one.notes + general, seconds=seconds) for one in (subject, *made[1:])]
    if save and paths[0].is_file():
        cards.add(paths[0], benchmark=results[0])
    return tuple(results)


def _located(place: str | Path) -> Path:
    """Return the folder or first file of `place`, fetched if it is a hub id."""
    path = Path(place).expanduser()
    if not path.exists() and isinstance(place, str) and looks_like_id(place):
        return fetch(place)
    if path.is_file() and path.suffix == ".gguf":
        return split_paths(path)[0]
    return path


def _traffic(path: Path, read: Callable[[Path], Traffic]) -> Traffic | str:
    """Return what a token costs, or in words why that is not known."""
    try:
        return read(path)
    except UnsupportedError as error:
        return str(error)


def _benchmark(side: Side, traffic: Traffic | str, scene: _Scene, workload: Workload) -> Benchmark:
    name = side.path.name
    metrics = metrics_of(side, workload, _size(side.path))
    if isinstance(traffic, Traffic):
        metrics = with_shares(metrics, traffic, scene.roofs, workload)
        notes = share_notes(name, metrics, traffic, scene.roofs, scene.machine)
    else:
        notes = (f"{name}: no shares of the roofs, because what a token reads is not known ({traffic})",)
    return Benchmark(
        subject=name,
        subject_sha256=_hash(side.path),
        against="",
        engine=side.version,
        machine=scene.facts(),
        settings=workload.settings(),
        metrics=metrics,
        notes=notes,
        versions=provenance.versions() | _packages(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _limits(subject: Benchmark, ratio: float | None, speed: float | None) -> tuple[Limit, ...]:
    found = []
    latency = next((metric for metric in subject.ratios if metric.name == "latency_p50_ms"), None)
    if ratio is not None and latency is not None:
        named = Metric("latency_ratio", latency.value, "", latency.low, latency.high, latency.units)
        found.append(judge(named, ratio))
    generation = subject.metric("generation_tokens_per_s")
    if speed is not None and generation is not None:
        found.append(judge(generation, speed, is_least=True))
    return tuple(found)


def _memory_notes(paths: Sequence[Path]) -> tuple[str, ...]:
    free, needed = available_bytes(), sum(_size(path) for path in paths)
    if free is None or needed < free:
        return ()
    return (f"the artefacts take {needed:,} bytes, {free:,} were free: the machine may have swapped",)


def _energy_note(meter: Meter | str) -> tuple[str, ...]:
    return (f"no energy: {meter}",) if isinstance(meter, str) else ("energy is that of the whole processor package",)


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return split_paths(path)
    for pattern in ("*.safetensors", "*.bin"):
        found = sorted(path.glob(pattern))
        if found:
            return found
    raise MissingError(f"{path}: no .safetensors or .bin file with weights")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _weights(path))


def _hash(path: Path) -> str:
    return sha256(_weights(path)[0])


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
