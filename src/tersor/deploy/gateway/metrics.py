"""What the gateway counts, for Prometheus: base units, names that promtool accepts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import prometheus_client
else:
    prometheus_client = LazyModule("prometheus_client", "serve")

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOGETHER = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one gateway, in a registry of their own, and what is recorded beside them."""

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
        self._rolled_out()
        self._watched()
        self.recorder = Recorder()

        each = (self.requests, self.tokens, self.seconds, self.first, self.together, self.in_flight)
        for metric in (*each, self.failed, self.fell_back):
            # Of each request; a look-up checks names and takes a lock otherwise.
            vars(metric)["labels"] = cache(metric.labels)

    def _rolled_out(self) -> None:
        """Make those of rollouts and their shadows."""
        registry, by = self.registry, ("model", "variant")
        counter, gauge = prometheus_client.Counter, prometheus_client.Gauge
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

    def _watched(self) -> None:
        """Make those that the watch sets, or its alerts look at."""
        registry, by = self.registry, ("model", "variant")
        counter, gauge = prometheus_client.Counter, prometheus_client.Gauge
        self.failed = counter("tersor_failed", "Requests taken that nobody answered.", by, registry=registry)
        self.fell_back = counter(
            "tersor_fell_back", "Requests of this variant that the fallback answered.", by, registry=registry
        )
        self.memory = gauge("tersor_engine_memory_bytes", "Memory that an engine holds.", by, registry=registry)
        self.machine = gauge("tersor_machine_memory_bytes", "Memory of this machine.", registry=registry)
        self.agreement = gauge(
            "tersor_agreement_ratio", "Answers that agree with the reference, last hour.", by, registry=registry
        )
        self.floor = gauge(
            "tersor_agreement_floor_ratio", "Answers in which the reference agrees with itself.", by, registry=registry
        )
        self.apart = gauge(
            "tersor_reference_distance",
            "Mean distance from the reference, beyond its own: relative norm (tensors) or nats (tokens), last hour.",
            by,
            registry=registry,
        )
        self.accuracy = gauge(
            "tersor_accuracy_ratio", "Labelled answers that are right, last hour.", by, registry=registry
        )
        self.estimated = gauge(
            "tersor_estimated_accuracy_ratio",
            "Accuracy of the last answers by calibrated confidence; end: value, low or high of 95 %.",
            (*by, "end"),
            registry=registry,
        )
        self.clipped = gauge(
            "tersor_clipped_activations_ratio",
            "Activations beyond the range of their quantizer, last window: the ten layers that are worst.",
            (*by, "layer"),
            registry=registry,
        )
        self.drifted = gauge(
            "tersor_drift_alarm",
            "Whether the last window drifted; side: input, output or activations.",
            (*by, "side"),
            registry=registry,
        )
        self.distance = gauge(
            "tersor_drift_nats",
            "Jensen-Shannon divergence of the last window.",
            (*by, "side", "feature"),
            registry=registry,
        )
        self.alerts = gauge(
            "tersor_alerts_firing", "Alerts of the gateway's own that fire.", (*by, "alert"), registry=registry
        )

    def introduce(self, model: str, variant: str) -> None:
        """Begin all counts of a variant at zero: a share of what was never counted would be no number."""
        self.requests.labels(model, variant, "200")
        for metric in (self.failed, self.fell_back):
            metric.labels(model, variant)

    def forget(self, model: str, variant: str) -> None:
        """Take away what is shown of a variant that is gone as if it lasted; what was counted stays."""
        whose = {"model": model, "variant": variant}
        judged = (self.agreement, self.floor, self.apart, self.accuracy, self.estimated)
        drifting = (self.drifted, self.distance, self.clipped)
        lasting = (self.memory, *judged, *drifting, self.alerts, self.weight, self.nearness)
        for gauge in lasting:
            for sample in [one for family in gauge.collect() for one in family.samples]:
                if whose.items() <= sample.labels.items():
                    gauge.remove(*sample.labels.values())

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return prometheus_client.generate_latest(self.registry)
