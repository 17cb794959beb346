"""Golden prompts through the very code that serves: engine process, sentinels, memory and times."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tersor.core.errors import EngineError
from tersor.deploy.config import Limits, ModelPlan, VariantPlan
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served, TooLateError
from tersor.deploy.gateway.watching import with_logprobs
from tersor.deploy.gating.record import GateCheck, Outcome
from tersor.deploy.running.supervised import RequestError
from tersor.targets.memory import footprint

__all__ = ["GOLDEN", "Bounds", "check_serving"]

GOLDEN = (
    *("The", "import os\nimport sys\n\n", "def main():\n    ", "In this section we", "Returns the number of"),
    *("class Error(", "Once upon a time", "0, 1, 2, 3,", "Note that", "https://", "A list is", "for key, value in"),
)
"""Beginnings of texts of several kinds; a model that knows none of them still has to say something."""
TOKENS = 32
FAULTY = 0.1
"""Share of golden answers with a fault that fails: greedy answers of small models do loop now and then."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What serving may take; None: whatever it takes.

    first_ms      until the first token, median over the golden prompts
    memory_bytes  of the engine's process at its peak
    """

    first_ms: float | None = None
    memory_bytes: int | None = None


@dataclass
class _Seen:
    first_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: int = 0
    peak: int | None = None


def check_serving(path: Path, *, threads: int, bounds: Bounds, prompts: Sequence[str] = GOLDEN) -> list[GateCheck]:
    """Serve a GGUF, ask every golden prompt, and return the checks of answers, times and memory."""
    seen = asyncio.run(_served(path, threads, prompts))
    return [_answers(seen, len(prompts)), *_bounded(seen, bounds)]


async def _served(path: Path, threads: int, prompts: Sequence[str]) -> _Seen:
    plan = VariantPlan("llama.cpp", str(path), threads=threads, slots=2, context=256)
    model = Served("gate", ModelPlan("only", {"only": plan}, limits=Limits(2, len(prompts), 60.0)), Metrics())
    seen = _Seen()
    try:
        await model.start()
    except EngineError as error:
        seen.errors.append(str(error).split("\n", maxsplit=1)[0])
        return seen
    try:
        for number, prompt in enumerate(prompts):
            await _asked(model, prompt, number, seen)
        pid = model.variants["only"].engine.pid
        found = None if pid is None else footprint(pid)
        seen.peak = None if found is None else found.peak or found.resident
    finally:
        await model.close()
    return seen


async def _asked(model: Served, prompt: str, seed: int, seen: _Seen) -> None:
    """Ask with some chance in it: greedily, small models repeat themselves in full precision too."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0.8, "seed": seed + 1, "stream": True}
    request = {"operation": "completions", "body": with_logprobs("completions", body)}
    watch, began, first = model.watch(request), time.perf_counter(), None
    try:
        async for part in model.variants["only"].run(request):
            first = time.perf_counter() - began if first is None else first
            watch.add(*part)
    except (EngineError, RequestError, TooLateError) as error:
        seen.errors.append(f"{prompt!r}: {str(error).split(chr(10), maxsplit=1)[0]}")
        return
    seen.answers += 1
    seen.first_ms.append(1e3 * (first or 0.0))
    faults = [
        f"{one.sentinel} ({one.value:.4g}, limit {one.limit:.4g})" for one in watch.findings if one.severity == "fault"
    ]
    if faults:
        seen.faults.append(f"{prompt!r}: {', '.join(faults)}")


def _answers(seen: _Seen, prompts: int) -> GateCheck:
    numbers = {"answers": float(seen.answers), "faulty_answers": float(len(seen.faults))}
    if seen.errors:
        detail = (
            f"{len(seen.errors)} of {prompts} golden prompts were not answered"
            if seen.answers
            else "it cannot be served"
        )
        return GateCheck("serving", "FAIL", detail, tuple(seen.errors), numbers)
    detail = f"{len(seen.faults)} of {prompts} golden answers have a fault"
    outcome: Outcome = "FAIL" if len(seen.faults) > FAULTY * prompts else "PASS"
    return GateCheck("serving", outcome, detail, tuple(seen.faults), numbers)


def _bounded(seen: _Seen, bounds: Bounds) -> list[GateCheck]:
    checks = []
    if bounds.first_ms is not None and seen.first_ms:
        value = statistics.median(seen.first_ms)
        detail = f"first token after {value:.3g} ms (median), {bounds.first_ms:g} allowed"
        outcome: Outcome = "PASS" if value <= bounds.first_ms else "FAIL"
        checks.append(GateCheck("latency", outcome, detail, (), {"first_ms": value, "limit": bounds.first_ms}))
    if bounds.memory_bytes is not None:
        if seen.peak is None:
            return [*checks, GateCheck("memory", "INCONCLUSIVE", "this system does not tell the memory of a process")]
        detail = f"{seen.peak / 2**20:.0f} MiB at the peak, {bounds.memory_bytes / 2**20:.0f} allowed"
        numbers = {"peak_bytes": float(seen.peak), "limit": float(bounds.memory_bytes)}
        checks.append(GateCheck("memory", "PASS" if seen.peak <= bounds.memory_bytes else "FAIL", detail, (), numbers))
    return checks
