"""Benchmark an artefact: how fast it runs here, beside another, and how far from what the machine could do."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.core.evaluation import Benchmark, Metric
from tersor.evaluation.limits import judge
from tersor.evaluation.nets.running.choices import Choice
from tersor.evaluation.nets.running.kernels import Kernel, of_roof
from tersor.evaluation.nets.running.race import Sizes
from tersor.evaluation.nets.running.remembered import remembered, told
from tersor.evaluation.speed.interleave import RaceProgress, Side, race
from tersor.evaluation.speed.runners import Runner, heeded, runner_for
from tersor.evaluation.speed.shares import noise_notes, share_notes, with_shares
from tersor.evaluation.speed.summary import LEAST_ROUNDS, metrics_of, ratios_of
from tersor.evaluation.speed.traffic import Traffic
from tersor.evaluation.speed.workload import Workload
from tersor.files.gguf import split_paths
from tersor.files.hashing import sha256
from tersor.models.hub import fetch, looks_like_id
from tersor.models.load import load
from tersor.pipeline.nets.benching import NetBench, bench_net
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps import cards, provenance
from tersor.pipeline.steps.scene import Scene, highest, look_around
from tersor.targets.energy import Meter
from tersor.targets.memory import available_bytes
from tersor.targets.processor import processor
from tersor.targets.roofs import measure_roofs

__all__ = ["bench", "model_roof", "weights_sha256"]

_PACKAGES = ("xllamacpp", "transformers", "torch")


def bench(
    artefact: str | Path,
    *,
    against: str | Path | None = None,
    compare: bool = False,
    engine: str | None = None,
    batch: int = 1,
    length: int = 128,
    threads: int = 0,
    prompt: int = 256,
    generate: int = 64,
    batches: Sequence[int] = (1, 2, 4, 8),
    rounds: int = 9,
    device: str = "cpu",
    kernels: str = "auto",
    max_latency_ratio: float | None = None,
    min_tokens_per_s: float | None = None,
    timeout_s: float = 600,
    save: bool = True,
    command: str = "",
    progress: RaceProgress | None = None,
) -> tuple[Benchmark, ...]:
    """Measure `artefact`, a GGUF, a folder of Hugging Face form or an ONNX net; return its Benchmark, then `against`'s.

    against            another artefact or model; both run in turn, round by round
    compare            run it in every engine that can, in turn, and return the fastest first: a net in those that are
                       installed, a folder in transformers and, its weights written as a GGUF, in llama.cpp
    engine             of a net: onnxruntime, openvino or torch; None: as `optimize` chose, else onnxruntime
    batch, length      of a net: sizes of a free first axis of its inputs, and of other free axes
    threads            of engines and roofs; 0: as `optimize` chose, where nothing runs beside, or all physical cores
    prompt, generate   tokens of a round; `batches`: numbers of parallel sequences to measure the throughput of
    device, kernels    of folders as `load_quantized` takes them, kernels of quantized ones; GGUFs stay on the processor
    max_latency_ratio  largest allowed ratio of the median time per token to that of `against`
    min_tokens_per_s   smallest allowed speed of generation; of engines that are compared, that of the fastest
    timeout_s          longest wait for loading and for each step of a round

    With `save` the Card beside the artefact takes the result in, where one lies there; nets and engines that are
    compared are not kept. Raises MissingError and UnsupportedError for what cannot be run, EngineError where an engine
    fails; SchemeError for options that do not combine.
    """
    began, is_net = time.perf_counter(), Path(artefact).suffix == ".onnx"
    _check_limits(max_latency_ratio, min_tokens_per_s, rounds, has_other=against is not None, is_net=is_net)
    if is_net:
        asked = NetBench(engine, compare, threads, rounds, Sizes(batch, length), timeout_s)
        return _net(Path(artefact), against, asked, max_latency_ratio, command=command, progress=progress)
    _check_engines(engine, compare=compare, has_other=against is not None)
    how: Any = {"threads": threads or processor().physical, "device": device, "kernels": kernels}
    workload = Workload(prompt, generate, tuple(batches), rounds, timeout_s=timeout_s, **how)
    if compare:
        return _compared(_located(artefact), workload, min_tokens_per_s, command, progress)
    paths = [_located(place) for place in (artefact, against) if place is not None]
    kept = None if threads or against is not None else remembered(paths[0])
    workload = workload if kept is None else replace(workload, threads=kept.threads)
    sides, made = _raced(paths, workload, progress)
    subject = _judged(_chosen(_subject(sides, made, workload, command), kept), max_latency_ratio, min_tokens_per_s)
    results = [replace(one, seconds=time.perf_counter() - began) for one in (subject, *made[1:])]
    if save:
        cards.add(cards.carded(paths[0]), benchmark=results[0])
    return tuple(results)


def model_roof(
    artefact: str | Path,
    *,
    threads: int = 0,
    prompt: int = 256,
    generate: int = 64,
    rounds: int = 9,
    kernels: str = "auto",
    timeout_s: float = 600,
    progress: RaceProgress | None = None,
) -> tuple[tuple[Kernel, ...], Scene, str]:
    """Return a prompt and a generated token of a language model against the roof, the machine, and what ran it.

    It runs on the processor, whose roofs they are. Of the whole model: its engines tell no times of layers, and a stop
    after each layer would change them. Attention and cache are not counted.
    """
    path = _located(artefact)
    name, row = runner_for(path)
    kept = None if threads else remembered(path)
    count = threads or (processor().physical if kept is None else kept.threads)
    workload = Workload(prompt, generate, (), rounds, loads=1, threads=count, timeout_s=timeout_s, kernels=kernels)
    _check_place([(path, row)], workload)
    traffic, scene, side = row.traffic(path), look_around(workload.threads), Side(path, row)
    race([side], workload, progress=progress)
    scene = replace(
        scene, roofs=highest(scene.roofs, measure_roofs(workload.threads))
    )  # work beside may have lowered it
    took = [
        ("prompt", f"{prompt} tokens", min(one.evaluated for one in side.readings), traffic.prompt_operations(prompt)),
        ("token", "generated", min(min(one.steps) for one in side.readings), traffic.prompt_operations(1)),
    ]
    found = tuple(
        of_roof(what, kind, seconds, count, traffic.weight_bytes, is_integer=traffic.is_integer, roofs=scene.roofs)
        for what, kind, seconds, count in took
    )
    said = "" if kept is None else f", {workload.threads} threads as `tersor optimize` chose on {kept.date[:10]}"
    return found, scene, f"{name}, {side.version}{said}"


def _check_limits(ratio: float | None, speed: float | None, rounds: int, *, has_other: bool, is_net: bool) -> None:
    if speed is not None and is_net:
        raise SchemeError("min_tokens_per_s is for language models: a net generates no tokens")
    if ratio is not None and not has_other:
        raise SchemeError("max_latency_ratio compares with another artefact: name it with against")
    if rounds < LEAST_ROUNDS and (ratio is not None or speed is not None):
        raise SchemeError(f"limits need at least {LEAST_ROUNDS} rounds, got {rounds}: fewer give no 95 % interval")


def _check_engines(engine: str | None, *, compare: bool, has_other: bool) -> None:
    if engine is not None:
        raise SchemeError("language models run in the engine of their form; compare shows all that can run one")
    if compare and has_other:
        raise SchemeError("engines are compared on one artefact: leave out against, or the comparison")


def _check_place(chosen: Sequence[tuple[Path, Runner]], workload: Workload) -> None:
    """Refuse a device or kernels that nothing here would be run with."""
    if (workload.device != "cpu" or workload.kernels != "auto") and not any(row.devices for _, row in chosen):
        raise SchemeError("a GGUF runs in llama.cpp, on the processor: device and kernels are for folders")
    if workload.kernels != "auto" and all(heeded(path, row, workload).kernels == "auto" for path, row in chosen):
        raise SchemeError("kernels are for quantized folders: others are run by torch as they are")


def _chosen(one: Benchmark, kept: Choice | None) -> Benchmark:
    """Say in a Benchmark that it ran as was remembered, where it did."""
    if kept is None:
        return one
    return replace(one, notes=(*one.notes, told(kept)), settings={**one.settings, "chosen": kept.date})


def _subject(sides: Sequence[Side], made: Sequence[Benchmark], workload: Workload, command: str) -> Benchmark:
    """Return the Benchmark of the first side, with ratios to the second where there is one."""
    if len(sides) < 2:
        return replace(made[0], command=command)
    ratios = ratios_of(sides[0], sides[1], workload, (_size(sides[0].path), _size(sides[1].path)))
    return replace(made[0], against=sides[1].path.name, ratios=ratios, command=command)


def _net(
    path: Path,
    against: str | Path | None,
    how: NetBench,
    ratio: float | None,
    *,
    command: str,
    progress: RaceProgress | None,
) -> tuple[Benchmark, ...]:
    other = None if against is None else Path(against)
    made = bench_net(path, how, against=other, command=command, progress=progress)
    latency = next((metric for metric in made[0].ratios if metric.name == "latency_best_ms"), None)
    if ratio is None or latency is None:
        return made
    named = Metric("latency_ratio", latency.value, "", latency.low, latency.high, latency.units)
    return (replace(made[0], limits=(judge(named, ratio),)), *made[1:])


def _raced(
    paths: Sequence[Path], workload: Workload, progress: RaceProgress | None
) -> tuple[list[Side], list[Benchmark]]:
    """Run every path in its engine, in turn; return the sides of the race and a Benchmark of each."""
    chosen = [(path, runner_for(path)[1]) for path in paths]
    _check_place(chosen, workload)
    traffics = [
        f"it runs on {workload.device}, the roofs and memory here are the processor's"
        if workload.device != "cpu" and row.devices
        else _traffic(path, row.traffic)
        for path, row in chosen
    ]
    scene = look_around(workload.threads)
    meter = scene.meter
    sides = [Side(path, row) for path, row in chosen]
    race(sides, workload, meter=meter if isinstance(meter, Meter) else None, progress=progress)
    made = [_benchmark(side, traffic, scene, workload) for side, traffic in zip(sides, traffics, strict=True)]
    busy = noise_notes(sides, workload, scene.load, scene.machine.cores)
    general = (*busy, *_memory_notes(paths), *_energy_note(meter))
    return sides, [replace(one, notes=one.notes + general) for one in made]


def _compared(
    path: Path, workload: Workload, speed: float | None, command: str, progress: RaceProgress | None
) -> tuple[Benchmark, ...]:
    """Run a model in every engine that can, and return the Benchmarks, the fastest generation first."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if path.is_dir():
            copy = Path(folder) / f"{path.resolve().name}.gguf"
            model = load(path)
            kind = Counter(tensor.source_dtype for tensor in model.tensors).most_common(1)[0][0].lower()
            quantize(model, kind if kind in ("f16", "bf16") else "f32", copy, measure=False)
            paths, note = [path, copy], f"{copy.name} holds the weights of {path.name}, as {kind}, for llama.cpp"
        else:
            paths, note = [path], "transformers reads a GGUF only as floats, with packages of its own: left out"
        sides, made = _raced(paths, workload, progress)
        sizes = [_size(each) for each in paths]
    speeds = [metric.value for one in made if (metric := one.metric("generation_tokens_per_s")) is not None]
    order = sorted(range(len(made)), key=lambda index: -speeds[index])
    found = []
    for place, index in enumerate(order):
        one = replace(made[index], notes=(*made[index].notes, note), command=command)
        if place:
            first = order[0]
            ratios = ratios_of(sides[index], sides[first], workload, (sizes[index], sizes[first]))
            one = replace(one, against=made[first].engine, ratios=ratios)
        found.append(replace(one, seconds=time.perf_counter() - began))
    return _judged(found[0], None, speed), *found[1:]


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
        return f"what a token reads is not known ({error})"


def _benchmark(side: Side, traffic: Traffic | str, scene: Scene, workload: Workload) -> Benchmark:
    name = side.path.name
    metrics = metrics_of(side, workload, _size(side.path))
    if isinstance(traffic, Traffic):
        metrics = with_shares(metrics, traffic, scene.roofs, workload)
        notes = share_notes(name, metrics, traffic, scene.roofs, scene.machine)
    else:
        notes = (f"{name}: no shares of the roofs: {traffic}",)
    return Benchmark(
        subject=name,
        subject_sha256=weights_sha256(side.path),
        against="",
        engine=side.version,
        machine=scene.facts(),
        settings=heeded(side.path, side.runner, workload).settings(),
        metrics=metrics,
        notes=notes,
        versions=provenance.versions() | _packages(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _judged(subject: Benchmark, ratio: float | None, speed: float | None) -> Benchmark:
    """Return the Benchmark with what its limits came to."""
    found = []
    latency = next((metric for metric in subject.ratios if metric.name == "latency_p50_ms"), None)
    if ratio is not None and latency is not None:
        named = Metric("latency_ratio", latency.value, "", latency.low, latency.high, latency.units)
        found.append(judge(named, ratio))
    generation = subject.metric("generation_tokens_per_s")
    if speed is not None and generation is not None:
        found.append(judge(generation, speed, is_least=True))
    return replace(subject, limits=tuple(found))


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


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of the first file of weights of an artefact, a file or a folder."""
    return sha256(_weights(path)[0])


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
