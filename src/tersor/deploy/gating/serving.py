"""Golden prompts through the very code that serves: engine process, sentinels, memory and times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tersor.core.errors import EngineError
from tersor.core.evaluation import Metric
from tersor.deploy.config import Limits, ModelPlan, VariantPlan
from tersor.deploy.gateway.metrics import Metrics
from tersor.deploy.gateway.models import Served, TooLateError
from tersor.deploy.gateway.watching import with_logprobs
from tersor.deploy.gating.record import GateCheck, Outcome, of_limit
from tersor.deploy.running.supervised import RequestError
from tersor.evaluation.limits import judge
from tersor.evaluation.speed.summary import median_metric
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


ROUNDS = 3
"""Of all golden prompts, where times are judged: a median of fewer values has a wide interval."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What serving may take; None: whatever it takes.

    first_ms      until the first token, median over the golden answers
    latency_ms    until the last of at most 32 tokens, median over the golden answers
    slowdown      time a token, as a multiple of that of full precision: the median of answers to the same prompt, in
                  turn, on this machine
    memory_bytes  of the engine's process at its peak
    """

    first_ms: float | None = None
    latency_ms: float | None = None
    slowdown: float | None = None
    memory_bytes: int | None = None

    @property
    def has_times(self) -> bool:
        """Whether times are judged."""
        return (self.first_ms, self.latency_ms, self.slowdown) != (None, None, None)


@dataclass
class _Seen:
    """Of one artefact; times are in the order of the prompts, None where there was no answer."""

    first_ms: list[float | None] = field(default_factory=list)
    whole_ms: list[float | None] = field(default_factory=list)
    token_ms: list[float | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: int = 0
    peak: int | None = None


def check_serving(
    path: Path, *, threads: int, bounds: Bounds, prompts: Sequence[str] = GOLDEN, full: Path | None = None
) -> list[GateCheck]:
    """Serve a GGUF, ask every golden prompt, and return the checks of answers, times and memory.

    full  a GGUF in full precision, which is asked in turn where a slowdown is judged
    """
    sides = {"only": path} if full is None or bounds.slowdown is None else {"only": path, "full": full}
    rounds = ROUNDS if bounds.has_times else 1
    seen = asyncio.run(_served(sides, threads, [prompt for _ in range(rounds) for prompt in prompts]))
    checks = [_answers(seen["only"], rounds * len(prompts)), *_timed(seen["only"], bounds)]
    if bounds.slowdown is not None:
        checks.append(_slowdown(seen, bounds.slowdown))
    return checks + _memory(seen["only"], bounds)


async def _served(sides: Mapping[str, Path], threads: int, prompts: Sequence[str]) -> dict[str, _Seen]:
    """Ask each side each prompt in turn, and another one first each time: what disturbs one disturbs all."""
    seen = {name: _Seen() for name in sides}
    async with AsyncExitStack() as stack:
        models = {}
        for name, path in sides.items():
            plan = VariantPlan("llama.cpp", str(path), threads=threads, slots=2, context=256)
            models[name] = Served("gate", ModelPlan("only", {"only": plan}, limits=Limits(2, len(prompts))), Metrics())
            try:
                await models[name].start()
            except EngineError as error:
                seen[name].errors.append(str(error).split("\n", maxsplit=1)[0])
                return seen
            stack.push_async_callback(models[name].close)
        for number, prompt in enumerate(prompts):
            names = list(models) if number % 2 else list(models)[::-1]
            for name in names:
                await _asked(models[name], prompt, number, seen[name])
        for name, model in models.items():
            pid = model.variants["only"].engine.pid
            found = None if pid is None else footprint(pid)
            seen[name].peak = None if found is None else found.peak or found.resident
    return seen


async def _asked(model: Served, prompt: str, seed: int, seen: _Seen) -> None:
    """Ask with some chance in it: greedily, small models repeat themselves in full precision too."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0.8, "seed": seed + 1, "stream": True}
    request = {"operation": "completions", "body": with_logprobs("completions", body)}
    watch, began, first = model.watch(request), time.perf_counter(), None
    times = (seen.first_ms, seen.whole_ms, seen.token_ms)
    try:
        async for part in model.variants["only"].run(request):
            first = time.perf_counter() - began if first is None else first
            watch.add(*part)
    except (EngineError, RequestError, TooLateError) as error:
        seen.errors.append(f"{prompt!r}: {str(error).split(chr(10), maxsplit=1)[0]}")
        for one in times:
            one.append(None)
        return
    whole = time.perf_counter() - began
    seen.answers += 1
    for one, value in zip(times, (first or whole, whole, whole / max(1, watch.tokens)), strict=True):
        one.append(1e3 * value)
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


def _timed(seen: _Seen, bounds: Bounds) -> list[GateCheck]:
    rows = (("first_ms", seen.first_ms, bounds.first_ms), ("latency_ms", seen.whole_ms, bounds.latency_ms))
    checks = []
    for name, times, bound in rows:
        values = [value for value in times if value is not None]
        if bound is not None and values:
            checks.append(_bounded(median_metric(name, values, "ms"), bound))
    return checks


def _slowdown(seen: Mapping[str, _Seen], bound: float) -> GateCheck:
    """Compare answers to the same prompts."""
    full = seen.get("full", _Seen())
    pairs = zip(seen["only"].token_ms, full.token_ms, strict=False)
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    if not ratios:
        detail = "there is no answer of both to compare"
        return GateCheck("slowdown", "INCONCLUSIVE", detail, tuple(full.errors), {"limit": bound})
    check = _bounded(median_metric("slowdown", ratios, ""), bound)
    middle = median_metric("full", [value for value in full.token_ms if value is not None], "ms").value
    return GateCheck(check.name, check.outcome, check.detail, (), {**check.numbers, "full_token_ms": middle})


def _bounded(metric: Metric, bound: float) -> GateCheck:
    """Judge a median by its 95 % interval; too few values for one settle nothing."""
    if metric.low is None or metric.high is None:
        detail = f"{metric.name}: {metric.units} answers are too few for an interval"
        return GateCheck(metric.name, "INCONCLUSIVE", detail, (), {metric.name: metric.value, "limit": bound})
    check = of_limit(judge(metric, bound))
    found = {metric.name: metric.value, "low": metric.low, "high": metric.high}
    return GateCheck(check.name, check.outcome, check.detail, check.problems, {**check.numbers, **found})


def _memory(seen: _Seen, bounds: Bounds) -> list[GateCheck]:
    if bounds.memory_bytes is None:
        return []
    if seen.peak is None:
        why = "it was not served" if seen.errors else "this system does not tell the memory of a process"
        return [GateCheck("memory", "INCONCLUSIVE", why)]
    detail = f"{seen.peak / 2**20:.0f} MiB at the peak, {bounds.memory_bytes / 2**20:.0f} allowed"
    numbers = {"peak_bytes": float(seen.peak), "limit": float(bounds.memory_bytes)}
    return [GateCheck("memory", "PASS" if seen.peak <= bounds.memory_bytes else "FAIL", detail, (), numbers)]
