"""What one way of evaluating hands to the verb that reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersor.core.evaluation import Histogram, Metric, Sample

__all__ = ["Findings"]


@dataclass(frozen=True, slots=True)
class Findings:
    """The part of an Evaluation that depends on the task; fields as there."""

    task: str
    data: str
    data_sha256: str
    metrics: tuple[Metric, ...]
    settings: Mapping[str, str | int | float | bool]
    histograms: tuple[Histogram, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
