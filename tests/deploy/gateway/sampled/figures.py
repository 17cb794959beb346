"""Metrics of a live gateway, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from ..conftest import Live
from ..operating.orders import asked


def metric(gateway: Live, name: str, **labels: str) -> float | None:
    """The value of one sample with these labels, the first found; None where there is none."""
    _, text, _ = asked(gateway.address, "GET", "/metrics")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def wait_for(is_so: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
