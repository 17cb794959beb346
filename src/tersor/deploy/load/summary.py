"""What a step of load found, with intervals, and whether the generator itself was too slow to find it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tersor.core.evaluation import Limit, Metric
from tersor.deploy.load.generator import StepRecord
from tersor.deploy.load.recorder import DurationRecorder
from tersor.evaluation.limits import judge
from tersor.evaluation.statistics import proportion_interval, quantile_interval

__all__ = ["StepResult", "bottleneck", "summarize"]

INTERVAL_UNITS = 50_000
"""Requests that an interval takes into account: of more, so many evenly picked ones, which makes it a little wider."""
LAG_S = 0.01
LAG_SHARE = 0.1
"""The generator is too slow where 1 % of requests leave later than both LAG_S and this share of the median latency."""
BUSY = 0.9
"""… or where it takes this share of a core: its own turn is then part of what it measures."""
_QUANTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))


@dataclass(frozen=True, slots=True)
class StepResult:
    """One rate, and what it did.

    rate, seconds  as intended
    requests       that were due
    metrics        with 95 % intervals where there are any; they take requests as independent
    statuses       of HTTP → answers
    errors         kind → requests that got no answer which could be used, apart from those with another status than 2xx
    invalid        why these numbers are those of the generator rather than of the server; "" where they are not
    """

    rate: float
    seconds: float
    requests: int
    metrics: tuple[Metric, ...]
    statuses: Mapping[str, int]
    errors: Mapping[str, int]
    limits: tuple[Limit, ...] = ()
    invalid: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_unanswered(self) -> bool:
        """Whether requests were sent, and not one got an answer of any status."""
        return sum(self.errors.values()) > self.errors.get("not sent", 0) and not self.statuses

    def metric(self, name: str) -> Metric | None:
        """Return the metric of that name, None where it was not measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def summarize(
    record: StepRecord, *, connections: int, max_p99_ms: float | None = None, min_goodput: float | None = None
) -> StepResult:
    """Return the result of a step, judged by the limits that are given.

    connections  that the generator could have open
    A step that the generator was too slow for passes and fails nothing: its limits are inconclusive.
    """
    step, metrics = record.step, (*_rates(record), *_latencies(record), *_texts(record), *_own(record))
    result = StepResult(
        step.rate,
        step.seconds,
        record.requests,
        metrics,
        {str(status): count for status, count in sorted(record.statuses.items())},
        dict(sorted(record.errors.items())),
        invalid=bottleneck(record, connections),
        notes=_notes(record),
    )
    limits = []
    if max_p99_ms is not None:
        unknown = Metric("latency_p99_ms", math.nan, "ms")
        limits.append(judge(result.metric("latency_p99_ms") or unknown, max_p99_ms))
    if min_goodput is not None:
        limits.append(judge(result.metric("goodput") or Metric("goodput", math.nan), min_goodput, is_least=True))
    if result.invalid:
        limits = [replace(one, outcome="inconclusive", reason=f"{result.invalid} ({one.reason})") for one in limits]
    return replace(result, limits=tuple(limits))


def bottleneck(record: StepRecord, connections: int) -> str:
    """Return in words why the generator, and not the server, set the numbers of a step; "" where it did not."""
    if not record.requests:
        return "no request was due: take a higher rate or more seconds"
    unsent = record.errors["not sent"]
    if unsent:
        return (
            f"{unsent} of {record.requests} requests were never sent: {connections} connections were all busy, or the "
            "system gave no more; allow more connections, or take a lower rate or a shorter timeout"
        )
    late = record.lag.quantile(0.99) if record.lag.count else 0.0
    median = record.latency.quantile(0.5) if record.latency.count else 0.0
    if late > max(LAG_S, LAG_SHARE * median if math.isfinite(median) else 0.0):
        if record.waited > record.requests / 100:
            return (
                f"{record.waited} of {record.requests} requests waited for one of {connections} connections, and 1 % "
                f"of all left more than {late * 1000:.3g} ms late: allow more connections"
            )
        return (
            f"1 % of the requests left more than {late * 1000:.3g} ms late: the generator could not keep up; take a "
            "lower rate, or run it where the processor is free"
        )
    share = record.processor / max(record.ended, record.step.seconds)
    if share > BUSY:
        return f"the generator took {share:.0%} of a core: take a lower rate, or share it among several generators"
    return ""


def _rates(record: StepRecord) -> list[Metric]:
    due, span = record.requests, max(record.ended, record.step.seconds)
    found = [
        Metric("offered_per_s", due / record.step.seconds, "requests/s"),
        Metric("achieved_per_s", record.good / span, "answers/s"),
    ]
    if due:
        units = min(due, INTERVAL_UNITS)
        share = proportion_interval(np.full(units, record.in_time / due))
        found += [
            Metric("goodput", record.in_time / due, "", share.low, share.high, due),
            Metric("goodput_per_s", record.in_time / span, "answers/s"),
        ]
    return found


def _latencies(record: StepRecord) -> list[Metric]:
    if not record.latency.count:
        return []
    greatest = Metric("latency_max_ms", record.latency.greatest * 1000, "ms", units=record.latency.count)
    return [*_quantiles("latency", record.latency), greatest]


def _texts(record: StepRecord) -> list[Metric]:
    found = []
    if record.first_token.count:
        found += _quantiles("first_token", record.first_token)
    if record.token_gap.count:
        found += _quantiles("time_per_token", record.token_gap)
    if record.tokens:
        span = max(record.ended, record.step.seconds)
        found.append(Metric("tokens_per_s", record.tokens / span, "tokens/s"))
    return found


def _own(record: StepRecord) -> list[Metric]:
    """How late the generator was, and what it took."""
    found = []
    if record.lag.count:
        for q, name in ((0.5, "p50"), (0.99, "p99")):
            found.append(Metric(f"lag_{name}_ms", record.lag.quantile(q) * 1000, "ms", units=record.lag.count))
        found.append(Metric("lag_max_ms", record.lag.greatest * 1000, "ms", units=record.lag.count))
    span = max(record.ended, record.step.seconds)
    return [*found, Metric("generator_core_share", record.processor / span)]


def _quantiles(name: str, recorder: DurationRecorder) -> list[Metric]:
    values = recorder.values(INTERVAL_UNITS) * 1000
    found = []
    for q, short in _QUANTILES:
        interval = quantile_interval(values, np.arange(len(values)), q)
        value = recorder.quantile(q) * 1000
        low, high = min(interval.low, value), max(interval.high, value)
        found.append(Metric(f"{name}_{short}_ms", value, "ms", low, high, recorder.count))
    return found


def _notes(record: StepRecord) -> tuple[str, ...]:
    notes = []
    lost = record.requests - record.good - record.errors["timeout"] - record.errors["not sent"]
    if lost:
        notes.append(
            f"{record.step.rate:g}/s: {lost} of {record.requests} requests failed before their time was up and are not "
            "in the latency: judge them by the goodput"
        )
    if record.errors["timeout"]:
        notes.append(
            f"{record.step.rate:g}/s: {record.errors['timeout']} of {record.requests} requests ran out of time and "
            "count as infinitely slow"
        )
    return tuple(notes)
