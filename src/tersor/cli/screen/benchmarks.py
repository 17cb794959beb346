"""Benchmarks for people: the machine, engines beside each other, kernels against the roof."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from tersor.cli.screen.output import significant, table
from tersor.core.evaluation import Benchmark, Metric
from tersor.evaluation.nets.running.kernels import Kernel
from tersor.pipeline.steps.scene import Scene

__all__ = [
    "SCALES",
    "machine_line",
    "print_engines",
    "print_kernels",
    "print_model",
    "print_nets",
    "roof_line",
    "shown",
    "shown_number",
]

SCALES = {"bytes": (1 << 20, "MiB"), "s": (1e-3, "ms")}
SHOWN_KERNELS = 25
_COLUMNS = (
    ("latency_best_ms", "ms"),
    ("generation_tokens_per_s", "tokens/s"),
    ("prompt_tokens_per_s", "prompt"),
    ("time_to_first_token_ms", "first, ms"),
    ("load_s", "load, ms"),
    ("peak_memory_bytes", "MiB"),
)
"""Metrics that a row of the comparison shows, where the engines have them; the first with its interval."""


def machine_line(one: Benchmark) -> str:
    """Return the processor, its cores and its roofs."""
    facts = one.machine
    parts = [f"{facts['processor']}, {facts['threads']} of {facts['cores']} cores"]
    parts.append(f"reads {float(facts['read_bytes_per_s']) / 2**30:.1f} GiB/s")
    parts.append(f"float32 {float(facts['float32_operations_per_s']) / 1e9:.0f} GFLOP/s")
    if "int8_operations_per_s" in facts:
        parts.append(f"int8 {float(facts['int8_operations_per_s']) / 1e9:.0f} GOP/s")
    return f"{', '.join(parts)} (by {facts['roofs_measured_by']})"


def print_engines(screen: Console, found: Sequence[Benchmark]) -> None:
    """One row an engine, the fastest first, and how many times slower the others are."""
    screen.print(machine_line(found[0]))
    screen.print(f"{found[0].subject}, {len(found)} engines in turn: medians, 95 % intervals\n")
    columns = [(name, title) for name, title in _COLUMNS if any(one.metric(name) is not None for one in found)]
    rows = table("engine", *(f">{title}" for _, title in columns), ">of roof", ">slower")
    for one in found:
        shares = [metric.share for metric in one.metrics if metric.share is not None]
        share = f"{shares[-1]:.0%}" if shares else "–"
        cells = [shown(one.metric(name), has_interval=not place) for place, (name, _) in enumerate(columns)]
        rows.add_row(one.engine, *cells, share, _slower(one))
    screen.print(rows)
    _notes(screen, found)


def _slower(one: Benchmark) -> str:
    """How many times the time of the fastest engine it takes; the fastest has no ratios."""
    ratios = {metric.name: metric.value for metric in one.ratios}
    if "latency_best_ms" in ratios:
        return f"{ratios['latency_best_ms']:.2f}×"
    if ratios.get("generation_tokens_per_s"):
        return f"{1 / ratios['generation_tokens_per_s']:.2f}×"
    return "1×"


def print_nets(screen: Console, found: Sequence[Benchmark]) -> None:
    """One net, or two beside each other in one engine."""
    subject = found[0]
    screen.print(machine_line(subject))
    for name, one in zip("AB", found, strict=False):
        screen.print(f"{name}  {one.subject}, {one.engine}, {one.settings['inputs']}")
    screen.print(f"{subject.settings['rounds']} rounds: medians, 95 % intervals\n")
    ratios = {metric.name: metric for metric in subject.ratios}
    rows = table("what", *(f">{name}" for name in "AB"[: len(found)]), *([">A / B"] if ratios else []))
    for metric in subject.metrics:
        unit = SCALES.get(metric.unit, (1, metric.unit))[1]
        stem = metric.name.removesuffix("_bytes").removesuffix("_ms").removesuffix("_per_s").removesuffix("_s")
        cells = [shown(one.metric(metric.name)) for one in found]
        rows.add_row(f"{stem.replace('_', ' ')}, {unit}", *cells, *([shown(ratios.get(metric.name))] if ratios else []))
    screen.print(rows)
    _notes(screen, found)


def _notes(screen: Console, found: Sequence[Benchmark]) -> None:
    screen.print()
    for note in dict.fromkeys(note for one in found for note in one.notes):
        screen.print(f"note: {note}")
    for limit in found[0].limits:
        screen.print(f"{limit.outcome}: {limit.reason}")


def print_kernels(screen: Console, kernels: Sequence[Kernel]) -> None:
    """The kernels that take the most time, each with its share of the roof, and what all come to."""
    total = sum(kernel.seconds for kernel in kernels)
    rows = table("kernel", "operator", ">ms", ">of all", ">M operations", ">KiB", "bound by", ">of the roof")
    longest = sorted(kernels, key=lambda kernel: -kernel.seconds)[:SHOWN_KERNELS]
    for kernel in longest:
        rows.add_row(
            kernel.name,
            kernel.operator,
            f"{1e3 * kernel.seconds:.3f}",
            f"{kernel.seconds / total:.0%}" if total else "–",
            "–" if kernel.operations is None else shown_number(kernel.operations / 1e6),
            "–" if kernel.nbytes is None else shown_number(kernel.nbytes / 1024),
            kernel.bound,
            "–" if kernel.share is None else f"{kernel.share:.0%}",
        )
    screen.print(rows)
    if len(kernels) > len(longest):
        screen.print(f"and {len(kernels) - len(longest)} kernels that take less (--json shows all)")
    screen.print(f"\nall kernels: {1e3 * total:.2f} ms, {_of_the_roof(kernels, total)}")


def print_model(screen: Console, kernels: Sequence[Kernel]) -> None:
    """A whole language model: its prompt and a token of it."""
    rows = table("of the whole model", "", ">ms", ">M operations", ">MiB of weights", "bound by", ">of the roof")
    for kernel in kernels:
        rows.add_row(
            kernel.name,
            kernel.operator,
            shown_number(1e3 * kernel.seconds),
            shown_number((kernel.operations or 0.0) / 1e6),
            shown_number((kernel.nbytes or 0.0) / 2**20),
            kernel.bound,
            "–" if kernel.share is None else f"{kernel.share:.0%}",
        )
    screen.print(rows)
    screen.print(
        "\nlayers: unknown, the engine tells no times of them; attention and cache are not counted. "
        "What lies in a cache is not bound by memory, and can exceed the roof"
    )


def roof_line(scene: Scene) -> str:
    """Return the processor and its roofs."""
    roofs = scene.roofs
    ints = "" if roofs.int8_ops is None else f", int8 {roofs.int8_ops / 1e9:.0f} GOP/s"
    return (
        f"{scene.machine.name}, {roofs.threads} threads: reads {roofs.read_bytes_per_s / 2**30:.1f} GiB/s, "
        f"float32 {roofs.float_flops / 1e9:.0f} GFLOP/s{ints}"
    )


def _of_the_roof(kernels: Sequence[Kernel], total: float) -> str:
    """What those come to whose share is known, and how much of the time that is."""
    known = [(kernel, kernel.share) for kernel in kernels if kernel.share is not None]
    covered = sum(kernel.seconds for kernel, _ in known)
    if not covered:
        return "shares of the roof unknown: this engine does not tell what its kernels read and compute"
    least = sum(kernel.seconds * share for kernel, share in known)
    count = sum(kernel.operations or 0.0 for kernel, _ in known) / 1e9
    part = "" if covered > 0.995 * total else f" for {covered / total:.0%} of the time, unknown for the rest"
    return (
        f"{count:.3f} G operations, {least / covered:.0%} of the roof{part}; "
        "what lies in a cache is not bound by memory, and can exceed it"
    )


def shown(metric: Metric | None, *, has_interval: bool = True) -> str:
    """Return a metric in the unit it is shown in, with its interval where it has one; a dash for None."""
    if metric is None:
        return "–"
    scale = SCALES.get(metric.unit, (1, ""))[0]
    text = shown_number(metric.value / scale)
    if not has_interval or metric.low is None or metric.high is None or not math.isfinite(metric.low + metric.high):
        return text
    return f"{text} ({shown_number(metric.low / scale)}–{shown_number(metric.high / scale)})"


def shown_number(value: float) -> str:
    """Return three significant digits, whole numbers from a thousand on.

    >>> shown_number(0.12345), shown_number(1234.5), shown_number(float("inf"))
    ('0.123', '1,234', '∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else significant(value, 3)
