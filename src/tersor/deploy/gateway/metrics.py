"""What the gateway counts, for Prometheus: base units, names that promtool accepts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import prometheus_client
else:
    prometheus_client = LazyModule("prometheus_client", "serve")

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOGETHER = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = prometheus_client.CollectorRegistry()
        counter, gauge, by = prometheus_client.Counter, prometheus_client.Gauge, ("model", "variant")
        histogram = prometheus_client.Histogram
        self.requests = counter("tersor_requests", "Answered requests.", (*by, "code"), registry=registry)
        self.refused = counter("tersor_refused", "Requests refused before any engine.", ("reason",), registry=registry)
        self.fallbacks = counter(
            "tersor_fallbacks", "Requests that the fallback answered.", ("model", "reason"), registry=registry
        )
        self.findings = counter(
            "tersor_findings", "What sentinels saw in answers.", (*by, "sentinel"), registry=registry
        )
        self.tokens = counter("tersor_generated_tokens", "Tokens in answers.", by, registry=registry)
        self.starts = counter("tersor_engine_starts", "Times that an engine was loaded.", by, registry=registry)
        self.seconds = histogram(
            "tersor_request_seconds", "Until the end of an answer.", by, buckets=SECONDS, registry=registry
        )
        self.first = histogram(
            "tersor_first_part_seconds", "Until the first part of an answer.", by, buckets=SECONDS, registry=registry
        )
        self.together = histogram(
            "tersor_batch_requests", "Requests in one call of a net.", by, buckets=TOGETHER, registry=registry
        )
        self.in_flight = gauge("tersor_in_flight_requests", "Requests being answered.", ("model",), registry=registry)
        self.ready = gauge("tersor_engine_ready", "Whether an engine answers.", by, registry=registry)
        self.weight = gauge(
            "tersor_rollout_weight", "Share of requests that a candidate answers.", by, registry=registry
        )
        self.moves = counter(
            "tersor_rollout_moves", "Times that a rollout came into a state.", (*by, "state"), registry=registry
        )
        self.nearness = gauge(
            "tersor_rollout_test_nearness",
            "How near a test is to a boundary, 1 at it.",
            (*by, "test", "boundary"),
            registry=registry,
        )
        self.assigned = counter(
            "tersor_rollout_requests", "Requests of a rollout by outcome.", (*by, "outcome"), registry=registry
        )
        self.shadow_compared = counter(
            "tersor_shadow_compared", "Answers compared with full precision.", by, registry=registry
        )
        self.shadow_agreed = counter("tersor_shadow_agreed", "Of these, that agreed.", by, registry=registry)
        self.shadow_dropped = counter(
            "tersor_shadow_dropped", "Answers that were not compared.", (*by, "reason"), registry=registry
        )

        for metric in (self.requests, self.tokens, self.seconds, self.first, self.together, self.in_flight):
            # Of each request; a look-up checks names and takes a lock otherwise.
            vars(metric)["labels"] = cache(metric.labels)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return prometheus_client.generate_latest(self.registry)
