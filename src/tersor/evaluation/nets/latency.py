"""How fast a net on integers runs beside the float one, both in ONNX Runtime, in turn."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from tersor.core.evaluation import Benchmark, Metric
from tersor.evaluation.speed.summary import median_metric
from tersor.evaluation.statistics import quantile_interval
from tersor.graph.net import Net
from tersor.graph.sessions import Feeds, Session, items_of

__all__ = ["latency_metrics", "race_nets"]

WARMUPS = 3
LEAST_ROUNDS, MOST_ROUNDS = 20, 400
SECONDS = 2.0
"""Of measuring, for both together, unless LEAST_ROUNDS take longer."""


def race_nets(subject: Net, against: Net, feeds: Feeds, *, threads: int = 0, seconds: float = SECONDS) -> Benchmark:
    """Return latencies of a net beside another on one batch; ratios are of runs that stood next to each other.

    feeds    what both are given
    threads  of ONNX Runtime; 0: as many as there are cores
    seconds  of measuring, for both together; never fewer than 20 runs of each
    """
    began = time.perf_counter()
    sessions = [Session(net, threads=threads) for net in (subject, against)]
    for session in sessions * WARMUPS:
        session.run(feeds)
    ours: list[float] = []
    theirs: list[float] = []
    start = time.perf_counter()
    while len(ours) < LEAST_ROUNDS or (time.perf_counter() - start < seconds and len(ours) < MOST_ROUNDS):
        for session, times in zip(sessions, (ours, theirs), strict=True):
            before = time.perf_counter()
            session.run(feeds)
            times.append(1e3 * (time.perf_counter() - before))
    sizes = [len(net.to_bytes()) for net in (subject, against)]
    return Benchmark(
        subject=subject.name,
        subject_sha256="",
        against=f"{against.name} in float",
        engine=f"onnxruntime {version('onnxruntime')}",
        machine={"cores": os.cpu_count() or 1},
        settings={"batch": items_of(feeds), "rounds": len(ours), "threads": threads or (os.cpu_count() or 1)},
        metrics=(*latency_metrics(ours), Metric("file_bytes", float(sizes[0]), "bytes")),
        ratios=(
            median_metric("latency_p50_ms", [a / b for a, b in zip(ours, theirs, strict=True)], ""),
            Metric("file_bytes", sizes[0] / sizes[1], units=1),
        ),
        seconds=time.perf_counter() - began,
        versions={"onnxruntime": version("onnxruntime")},
    )


def latency_metrics(times: Sequence[float]) -> list[Metric]:
    """Return the median and the 95th percentile of `times` in milliseconds, with their intervals."""
    made = []
    for name, share in (("latency_p50_ms", 0.5), ("latency_p95_ms", 0.95)):
        found = quantile_interval(times, np.arange(len(times)), share)
        low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
        made.append(Metric(name, found.value, "ms", low, high, len(times)))
    return made
