"""A net as the file that a phone runs, and what that file is: run here, compared, counted, timed."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import EngineError, SchemeError
from tersor.core.evaluation import Benchmark, Metric
from tersor.core.nets.work import OperatorWork
from tersor.engines.executorch.program import Program, lower
from tersor.evaluation.nets.latency import latency_metrics
from tersor.files.pte import PteProgram, read_pte
from tersor.graph.costs import work_of
from tersor.graph.net import Array
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sessions import Feeds, Session
from tersor.graph.writing.ort import ort_bytes
from tersor.graph.writing.stored import HALF_BITS
from tersor.graph.writing.xnnpack import exported, float_module, xnnpack_module
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["AGREEMENT", "SUFFIXES", "Made", "engine_for", "make_program"]

SUFFIXES: Mapping[str, str] = {".pte": "xnnpack", ".ort": "onnxruntime"}
"""Files for phones, and whose rules say what runs on integers in them."""
AGREEMENT = 0.02
"""Largest difference between the runtime and our own arithmetic on the same integers, as a share of the largest output:
a sum that falls between two codes may go to either, and moves an output by a few of 255 steps."""
SHARE_OF_NOISE = 0.5
"""More than AGREEMENT is rounding too where it is at most this share of what quantizing itself has moved the outputs by
(root of the mean square): in a deep net a code that goes the other way moves many of those after it."""
HALF_AGREEMENT = 0.05
"""The same for floats of 16 bits."""
SECONDS = 1.0
"""Of timing."""


@dataclass(frozen=True, eq=False)
class Made:
    """The bytes of a file, what was measured of it, what a reader of its Card must know, and what its operators do."""

    data: bytes
    benchmark: Benchmark
    notes: tuple[str, ...]
    work: tuple[OperatorWork, ...]


def engine_for(suffix: str) -> str:
    """Return whose rules a file of that suffix needs; SchemeError for one that phones do not run."""
    if suffix not in SUFFIXES:
        raise SchemeError(
            f"phones run {' and '.join(SUFFIXES)} files (ExecuTorch, ONNX Runtime), not {suffix or 'others'}"
        )
    return SUFFIXES[suffix]


def make_program(
    quantized: QuantizedNet, sample: Feeds, suffix: str, *, half: bool = False, threads: int = 0, name: str = "int8"
) -> Made:
    """Return the file of a net, for one item at a time, after it has run on `sample` and agreed.

    quantized  for the engine that `engine_for` names; without any site it stays in float
    sample     items that are run one by one: every output of floats is compared with the float net's, and with the same
               integers computed by PyTorch (ONNX Runtime, node by node, for .ort)
    half       floats of 16 bits, .pte alone
    Raises EngineError where the runtime's outputs are further from that than rounding explains, or it does not run.
    """
    items = [{key: values[place : place + 1] for key, values in sample.items()} for place in range(_count(sample))]
    began, engine = time.perf_counter(), engine_for(suffix)
    if quantized.recipe.engine != engine:
        raise SchemeError(f"{suffix} needs a net quantized for {engine}, not for {quantized.recipe.engine}")
    if half and suffix != ".pte":
        raise SchemeError(f"{suffix} has no floats of 16 bits here: write fp16 as .pte")
    packs = quantized.placement.precision.activations == "float"
    if suffix == ".ort" and packs and any(row.quantizer.scheme.bits <= HALF_BITS for row in quantized.weights.values()):
        raise SchemeError("ONNX Runtime 1.32 reads no integers of 4 bits in its own format: write int8, or as .pte")
    run = _Executorch if suffix == ".pte" else _OnnxRuntime
    made = run(quantized, items, half=half, threads=threads)
    source = Session(quantized.source, threads=1)
    plain, outputs, wanted = (
        _floats(each) for each in ([source.all(each) for each in items], made.outputs, made.wanted)
    )
    limit = HALF_AGREEMENT if half else AGREEMENT
    each_off = [max(map(_difference, *one)) for one in zip(outputs, wanted, strict=True)]
    shares = [_share_of_noise(*one) for one in zip(outputs, wanted, plain, strict=True)]
    off, share = max(each_off), max(shares)
    if not all(one <= limit or other <= SHARE_OF_NOISE for one, other in zip(each_off, shares, strict=True)):
        raise EngineError(
            f"{quantized.source.name}: {made.engine} computes something else than the same numbers in {made.judge}, by "
            f"{off:.2g} of the largest output, {share:.2g} of what quantizing moved it by; at most {limit:g}, or "
            f"{SHARE_OF_NOISE:g}, is rounding"
        )
    work = work_of(quantized.source, items[0], quantized.placement, half=half)
    metrics = (
        *latency_metrics(made.times_ms),
        Metric("file_bytes", float(len(made.data)), "bytes"),
        *made.memory,
        Metric("macs", float(sum(row.macs for row in work))),
        Metric("output_sqnr", min(map(_sqnr, plain, outputs)), "dB", units=len(items)),
        Metric("runtime_difference", off, units=len(items)),
        *([Metric("runtime_share_of_noise", share, units=len(items))] if math.isfinite(share) else []),
    )
    benchmark = Benchmark(
        subject=f"{quantized.source.name} as {name}",
        subject_sha256="",
        against="",
        engine=made.engine,
        machine={"cores": os.cpu_count() or 1},
        settings={"batch": 1, "rounds": len(made.times_ms), "threads": made.threads},
        metrics=metrics,
        seconds=time.perf_counter() - began,
        versions=made.versions,
    )
    return Made(made.data, benchmark, made.notes, work)


class _Executorch:
    """A program of ExecuTorch, lowered to XNNPACK."""

    judge = "PyTorch"

    def __init__(self, quantized: QuantizedNet, items: Sequence[Feeds], *, half: bool, threads: int) -> None:
        is_float = not (quantized.placement.weights or quantized.placement.activations)
        module: Any = float_module(quantized.source, half=half) if is_float else xnnpack_module(quantized)
        lowered = lower(exported(module, items[0]), quantized.source.name)
        self.data, self.versions = lowered.data, {"executorch": version("executorch"), "torch": version("torch")}
        self.engine = f"ExecuTorch {version('executorch')}, XNNPACK"
        with torch.no_grad():
            self.wanted = [_arrays(module(*map(torch.from_numpy, each.values()))) for each in items]
        with tempfile.TemporaryDirectory(prefix="tersor-phone-") as folder:
            path = Path(folder) / f"{quantized.source.name}.pte"
            path.write_bytes(self.data)
            facts = read_pte(path)
            with Program(path, threads=threads) as program:
                self.outputs = [program.run(list(each.values())) for each in items]
                self.times_ms = program.times_ms(list(items[0].values()), seconds=SECONDS)
                self.threads, resident = program.threads, program.resident_bytes
                load = Metric("load_s", program.load_s, "s", units=1)
        grown = [Metric("resident_bytes", float(resident), "bytes", units=1)] * (resident > 0)
        self.memory = (load, Metric("planned_bytes", float(facts.planned_bytes), "bytes"), *grown)
        self.notes = tuple(_shares(lowered.delegated, facts))


class _OnnxRuntime:
    """A net in ONNX Runtime's own format."""

    judge = "ONNX Runtime node by node"

    def __init__(self, quantized: QuantizedNet, items: Sequence[Feeds], *, half: bool, threads: int) -> None:
        del half  # refused before
        self.data, self.versions = ort_bytes(quantized.net), {"onnxruntime": version("onnxruntime")}
        self.engine, self.threads = f"onnxruntime {version('onnxruntime')}, .ort", threads or (os.cpu_count() or 1)
        session = Session(quantized.net, threads=threads, data=self.data)
        self.outputs = [session.all(each) for each in items]
        judge = Session(quantized.net, threads=1, optimized=False)
        self.wanted = [judge.all(each) for each in items]
        self.times_ms: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(self.times_ms) < 20 or time.perf_counter() < end:
            began = time.perf_counter()
            session.first(items[0])
            self.times_ms.append(1e3 * (time.perf_counter() - began))
        self.memory: tuple[Metric, ...] = ()
        self.notes: tuple[str, ...] = ()


def _share_of_noise(outputs: Sequence[Array], wanted: Sequence[Array], plain: Sequence[Array]) -> float:
    """How far an output is from our own arithmetic, in units of how far that is from the float net."""
    runtime = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(outputs, wanted, strict=True))
    noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(wanted, plain, strict=True))
    return math.sqrt(runtime / noise) if noise > 0 and math.isfinite(runtime) else math.inf


def _shares(delegated: Mapping[str, int], facts: PteProgram) -> list[str]:
    """Return what XNNPACK computes and what the runtime's own kernels do, by name."""
    taken, left = sum(delegated.values()), sum(facts.kernels.values())
    told = [
        f"XNNPACK computes {taken} of {taken + left} operators, in {sum(facts.delegates.values())} pieces: "
        + _listed(delegated)
    ]
    if left:
        told.append(f"the runtime's own kernels, of one thread, compute {left} operators: {_listed(facts.kernels)}")
    told.append(
        f"the program plans {facts.planned_bytes:,} bytes for inputs, outputs and what stands between pieces; XNNPACK "
        "takes its own memory beside: resident_bytes is what a process grew by, packed weights included"
    )
    return told


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def _count(sample: Feeds) -> int:
    return min(len(values) for values in sample.values())


def _arrays(made: Any) -> list[Array]:
    return [tensor.detach().numpy() for tensor in ([made] if isinstance(made, torch.Tensor) else made)]


def _floats(items: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """Return, for each output of floats, what it was for every item; of all, where none is: a class is no distance."""
    outputs = [list(each) for each in zip(*items, strict=True)]
    return [each for each in outputs if np.issubdtype(each[0].dtype, np.floating)] or outputs


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    largest = float(np.abs(theirs).max(initial=0)) or 1.0
    off = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0)) / largest
    return off if math.isfinite(off) else math.inf


def _sqnr(wanted: Sequence[Array], made: Sequence[Array]) -> float:
    """Return the ratio of signal to noise, decibels; 300 where there is no noise."""
    power = sum(float(np.square(each.astype(np.float64)).sum()) for each in wanted)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(made, wanted, strict=True))
    return min(10 * math.log10(max(power, 1e-30) / max(noise, 1e-30)), 300.0)
