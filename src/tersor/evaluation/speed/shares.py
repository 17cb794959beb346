"""Rates as shares of what the machine could do at most, and in words what to think of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tersor.core.evaluation import Metric
from tersor.evaluation.speed.interleave import Side
from tersor.evaluation.speed.summary import series, spread
from tersor.evaluation.speed.traffic import Traffic
from tersor.evaluation.speed.workload import Workload
from tersor.targets.processor import Processor, is_busy
from tersor.targets.roofs import Roofs

__all__ = ["noise_notes", "share_notes", "with_shares"]

LARGE_SPREAD = 0.1
"""Interquartile range of a rate, as a share of its median, above which the machine was not quiet."""
_MIB = 1 << 20


def with_shares(metrics: Sequence[Metric], traffic: Traffic, roofs: Roofs, workload: Workload) -> tuple[Metric, ...]:
    """Return the metrics with shares at the rates that a roof limits."""
    return tuple(replace(metric, share=_share(metric, traffic, roofs, workload)) for metric in metrics)


def _share(metric: Metric, traffic: Traffic, roofs: Roofs, workload: Workload) -> float | None:
    if metric.name == "generation_tokens_per_s":
        return metric.value * traffic.weight_bytes / roofs.read_bytes_per_s
    if metric.name == "prompt_tokens_per_s":
        seconds = workload.prompt / metric.value
        return traffic.prompt_operations(workload.prompt) / seconds / _arithmetic(traffic, roofs)[1]
    return None


def _arithmetic(traffic: Traffic, roofs: Roofs) -> tuple[str, float]:
    """Return name and rate of the roof of a prompt: engines multiply quantized weights in int8 where they can."""
    if traffic.is_integer and roofs.int8_ops is not None:
        return "int8", roofs.int8_ops
    return "float32", roofs.float_flops


def share_notes(
    name: str, metrics: Sequence[Metric], traffic: Traffic, roofs: Roofs, processor: Processor
) -> tuple[str, ...]:
    """Say against which roofs the shares stand, and explain those above 1."""
    found = {metric.name: metric.share or 0.0 for metric in metrics}
    kind, _ = _arithmetic(traffic, roofs)
    notes = [
        (
            f"{name}: a generated token reads {traffic.weight_bytes / _MIB:.1f} MiB of weights; its share is of the "
            f"read bandwidth. The prompt's share is of the {kind} rate; attention is not counted"
        )
    ]
    cache = processor.cache_bytes
    if cache is not None and traffic.weight_bytes <= cache:
        notes.append(
            f"{name}: the weights of a token ({traffic.weight_bytes / _MIB:.1f} MiB) fit in the last-level cache "
            f"({cache / _MIB:.0f} MiB): they are not read from memory, whose bandwidth is no roof here"
        )
    elif found.get("generation_tokens_per_s", 0.0) > 1:
        notes.append(
            f"{name}: generation reads more than the measured bandwidth: part of the weights stays in a cache, "
            "or the machine was busier while the roof was measured"
        )
    if found.get("prompt_tokens_per_s", 0.0) > 1:
        why = "in a narrower type than that" if kind == "float32" else "faster than our loop"
        notes.append(
            f"{name}: the prompt exceeds the {kind} rate: the engine multiplies {why}, "
            "or the machine was busier while the roof was measured"
        )
    return tuple(notes)


def noise_notes(sides: Sequence[Side], workload: Workload, load: float | None, cores: int) -> tuple[str, ...]:
    """Say that the machine was busy, where it was at the start or where rounds differ much."""
    notes = []
    if is_busy(load):
        notes.append(f"the load average was {load:.1f} at the start, on {cores} cores: other work ran beside")
    for side in sides:
        widths = {name: spread(values) for name, _, values in series(side, workload)}
        name = max(widths, key=lambda key: widths[key])
        if widths[name] > LARGE_SPREAD:
            notes.append(
                f"{side.path.name}: the middle half of the rounds spreads over {widths[name]:.0%} of the median "
                f"({name}): the machine was busy; run again when it is quiet, or with more rounds or fewer threads"
            )
    return tuple(notes)
