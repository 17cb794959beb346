"""Numbers from rounds: medians, intervals, ratios of paired rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tersor.core.evaluation import Metric
from tersor.evaluation.speed.interleave import Side
from tersor.evaluation.speed.workload import Reading, Workload
from tersor.evaluation.statistics import quantile_interval

__all__ = ["median_metric", "metrics_of", "order_interval", "ratios_of", "spread"]

LATENCIES = {"latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
LEAST_ROUNDS = 6
"""Of fewer values even the smallest and the largest enclose the median with less than 95 %."""


def order_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return an interval of the median, whatever the distribution; None for too few values: for 95 % LEAST_ROUNDS.

    Its ends are the k-th smallest and k-th largest value, with k the largest for which a fair coin shows fewer than k
    heads in as many throws with a chance of at most half of what the confidence leaves: 2.5 %.

    >>> order_interval([3, 1, 2, 5, 4, 6, 9, 8, 7]), order_interval([1, 2, 3, 4, 5])
    ((2, 8), None)
    """
    count, ordered = len(values), sorted(values)
    k, chance = 0, 0.5**count
    while chance <= (1 - confidence) / 2:
        k += 1
        chance += math.comb(count, k) * 0.5**count
    return (ordered[k - 1], ordered[count - k]) if k else None


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range as a share of the median.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    0.6666666666666666
    """
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return float((high - low) / middle) if middle else 0.0


def median_metric(name: str, values: Sequence[float], unit: str, *, share: float | None = None) -> Metric:
    """Return the median of `values`, one a round, with its interval."""
    low, high = order_interval(values) or (None, None)
    return Metric(name, float(np.median(values)), unit, low, high, len(values), share=share)


def metrics_of(side: Side, workload: Workload, file_bytes: int) -> tuple[Metric, ...]:
    """Return every metric of one side, without shares of roofs."""
    found = [median_metric("load_s", side.loads, "s")]
    found += [median_metric(name, values, unit) for name, unit, values in series(side, workload)]
    found += [_latency(name, q, side.readings) for name, q in LATENCIES.items()]
    for name, amount in (("peak_memory_bytes", side.memory.peak), ("steady_memory_bytes", side.memory.steady)):
        if amount is not None:
            found.append(Metric(name, float(amount), "bytes", units=1))
    found += [
        Metric("file_bytes", float(file_bytes), "bytes"),
        Metric("loaded_bytes", float(side.loaded_bytes), "bytes"),
    ]
    return tuple(found)


def series(side: Side, workload: Workload) -> Iterator[tuple[str, str, list[float]]]:
    """Yield name, unit and one value a round of everything that is measured once a round."""
    readings = side.readings
    yield "time_to_first_token_ms", "ms", [1e3 * reading.first_token for reading in readings]
    yield "prompt_tokens_per_s", "tokens/s", [workload.prompt / reading.evaluated for reading in readings]
    yield "generation_tokens_per_s", "tokens/s", [len(reading.steps) / sum(reading.steps) for reading in readings]
    for size in workload.batches:
        yield f"throughput_batch_{size}_tokens_per_s", "tokens/s", [reading.batches[size] for reading in readings]
    joules = [reading.joules / len(reading.steps) for reading in readings if reading.joules is not None]
    if len(joules) == len(readings):
        yield "energy_joules_per_token", "J", joules


def ratios_of(subject: Side, other: Side, workload: Workload, file_bytes: tuple[int, int]) -> tuple[Metric, ...]:
    """Return subject / other of every metric, from rounds that ran side by side; files and memory as they are."""
    found = [_paired("load_s", subject.loads, other.loads)]
    theirs = {name: values for name, _, values in series(other, workload)}
    found += [_paired(name, values, theirs[name]) for name, _, values in series(subject, workload) if name in theirs]
    for name, q in LATENCIES.items():
        mine, others = (
            [float(np.quantile(reading.steps, q)) for reading in side.readings] for side in (subject, other)
        )
        found.append(_paired(name, mine, others))
    sizes = {
        "peak_memory_bytes": (subject.memory.peak, other.memory.peak),
        "steady_memory_bytes": (subject.memory.steady, other.memory.steady),
        "file_bytes": file_bytes,
        "loaded_bytes": (subject.loaded_bytes, other.loaded_bytes),
    }
    found += [
        Metric(name, a / b, units=1) for name, (a, b) in sizes.items() if a is not None and b is not None and b > 0
    ]
    return tuple(found)


def _paired(name: str, mine: Sequence[float], theirs: Sequence[float]) -> Metric:
    return median_metric(name, [a / b for a, b in zip(mine, theirs, strict=True)], "")


def _latency(name: str, q: float, readings: Sequence[Reading]) -> Metric:
    """Return a quantile over all tokens of all rounds; tokens of one round stand or fall together."""
    values = np.array([1e3 * step for reading in readings for step in reading.steps])
    rounds = np.repeat(np.arange(len(readings)), [len(reading.steps) for reading in readings])
    if len(readings) < LEAST_ROUNDS:
        return Metric(name, float(np.quantile(values, q)), "ms", units=len(readings))
    interval = quantile_interval(values, rounds, q)
    is_known = math.isfinite(interval.low) and math.isfinite(interval.high)
    low, high = (interval.low, interval.high) if is_known else (None, None)
    return Metric(name, interval.value, "ms", low, high, len(readings))
