"""What evaluating an artefact found: how good it is, where its error sits, how fast it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["HELD_OUT", "Benchmark", "Evaluation", "Histogram", "LayerError", "Limit", "Metric", "Outcome", "Sample"]

Outcome: TypeAlias = Literal["pass", "fail", "inconclusive"]
HELD_OUT = "held-out calibration text"
"""The task of what quantizing itself measured: on a part of its own calibration text, which is another for each."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number.

    name       such as "kl_mean"
    value      the estimate
    unit       "nats", "", "tokens/s", "ms", "bytes", …; "" for ratios and shares
    low, high  its 95 % confidence interval; None where none can be given
    units      independent units it rests on (windows of text, questions, images, repeats)
    floor      the noise floor: the same between two full-precision runs that should be equal; None if not measured
    share      of what this machine could do at most, 0 … 1; None where that makes no sense
    """

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    units: int = 0
    floor: float | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """One demand on a metric, and whether it was met.

    metric   name of the metric
    bound    its largest (or, if `is_least`, smallest) allowed value
    outcome  "inconclusive" where the confidence interval holds the bound
    reason   one sentence with the numbers: by how much it was missed or met
    needed   about how many units would settle it; None where it is settled
    """

    metric: str
    bound: float
    is_least: bool
    outcome: Outcome
    reason: str
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between consecutive edges; one edge more than counts."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item that went especially wrong: a token in its text, a question, an image.

    before, text, after  the text around the item and the item itself
    value                how wrong: KL in nats, …
    detail               what each model made of it
    """

    before: str
    text: str
    after: str
    value: float
    detail: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One comparison of an artefact with its reference on some data.

    task       "language", "choice", "classification", …
    subject    name of the artefact, and the SHA-256 of its first file ("" for a net in memory)
    reference  name of what it was compared with, "" for none
    data       name of the data and its SHA-256 ("" where it has none)
    engines    what computed each side: {"subject": "xllamacpp 2026…", "reference": "transformers 5.23 float32"}
    settings   what shaped the numbers: window length, convention, seeds
    limits     demands, with what became of each
    notes      what a reader must know to read the numbers
    """

    task: str
    subject: str
    subject_sha256: str
    reference: str
    data: str
    data_sha256: str
    engines: Mapping[str, str]
    settings: Mapping[str, str | int | float | bool]
    metrics: tuple[Metric, ...]
    histograms: tuple[Histogram, ...] = ()
    samples: tuple[Sample, ...] = ()
    limits: tuple[Limit, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    date: str = ""

    def metric(self, name: str) -> Metric | None:
        """Return the metric of that name, None where it was not measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    @property
    def outcome(self) -> Outcome | None:
        """The verdict over all limits: the worst of them, None without any."""
        for outcome in ("fail", "inconclusive", "pass"):
            if any(limit.outcome == outcome for limit in self.limits):
                return outcome
        return None


@dataclass(frozen=True, slots=True)
class LayerError:
    """What quantization did to one tensor, or one point of the computation.

    name          of the tensor (blk.3.attn_q.weight) or the activation (blk.3)
    kind, layer   such as "attn_q" and 3; layer None outside the blocks
    sqnr_db       signal to quantization noise, 10·log10(Σx² / Σ(x - x̂)²); None where the noise is zero
    cosine        between original and quantized, flattened
    largest       the largest absolute difference, in units of the root mean square of the original
    clipped       share of values outside of what their block can represent; None where that has no meaning
    entering_db   SQNR of this layer's output when only it is quantized, on full-precision input: where error enters
    arriving_db   SQNR of this layer's output with everything before it quantized too: where error has grown to
    findings      faults that rounding does not explain: "rows 16 … 31 (head 1) are those of head 3"
    """

    name: str
    kind: str
    layer: int | None
    sqnr_db: float | None
    cosine: float | None
    largest: float | None
    clipped: float | None = None
    entering_db: float | None = None
    arriving_db: float | None = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How fast one artefact ran, beside another where one was given.

    against   the other artefact, "" for none; both ran interleaved in the same minutes
    engine    what ran it
    machine   CPU model, cores used, and the roofs that were measured first
    metrics   of this artefact
    ratios    this artefact's metric / the other's, of paired runs
    """

    subject: str
    subject_sha256: str
    against: str
    engine: str
    machine: Mapping[str, str | int | float]
    settings: Mapping[str, str | int | float | bool]
    metrics: tuple[Metric, ...]
    ratios: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    date: str = ""

    def metric(self, name: str) -> Metric | None:
        """Return the metric of that name, None where it was not measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)
