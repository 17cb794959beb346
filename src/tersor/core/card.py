"""The Card: what was done to a model, what it cost, and everything needed to do it again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tersor.core.card_markdown import card_markdown
from tersor.core.errors import FormatError
from tersor.core.evaluation import Benchmark, Evaluation, LayerError
from tersor.core.plan import Plan
from tersor.core.records import from_json_text, plain, read_record, to_json_text

__all__ = ["CARD_SCHEMA", "Artefact", "Card", "Seconds", "TensorError", "card_path"]

CARD_SCHEMA = "tersor.card/2"
FIRST_SCHEMA = "tersor.card/1"
SINCE_SECOND = ("evaluations", "layers", "benchmarks")
PART = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Artefact:
    """One written file; `sha256` is empty for a dry run."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorError:
    """What rounding cost one tensor: rms(decode(encode(x)) - x) / rms(x); None where not measured.

    A tensor of zeros that stays zeros has error 0; one that does not has None, for want of a measure.

    method  what chose its grid points, "" where nothing was chosen
    output  the error of what it computes from the calibration inputs, relative too; None where that is not known
    plain   the same for plain, importance-weighted rounding
    note    why it is not the method that was asked for, "" where it is
    """

    name: str
    relative: float | None
    method: str = ""
    output: float | None = None
    plain: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Time spent in each stage; the stages run side by side, so `total` can be less than their sum."""

    reading: float = 0.0
    encoding: float = 0.0
    measuring: float = 0.0
    writing: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Card:
    """One artefact: plan, proof and provenance.

    name                name of the model
    sources             name and SHA-256 of every file that was read
    source_bytes        bytes of the source tensors, in their own types
    artefacts           the files that were written, in order
    errors              what rounding cost, one row a tensor, in the order of the plan
    peak_memory_bytes   largest resident size of the whole process so far; None where the system does not tell
    versions            of tersor, Python, NumPy and the kernels
    command             what was typed, without private paths
    evaluations         comparisons with the original on data, one a task, reference and data
    layers              comparison with the original tensor by tensor and layer by layer
    benchmarks          how fast it runs
    """

    name: str
    plan: Plan
    sources: Mapping[str, str]
    source_bytes: int
    artefacts: tuple[Artefact, ...]
    errors: tuple[TensorError, ...]
    seconds: Seconds
    peak_memory_bytes: int | None
    versions: Mapping[str, str]
    platform: str
    command: str
    dry_run: bool = False
    notes: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    layers: tuple[LayerError, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    schema: str = CARD_SCHEMA

    @property
    def nbytes(self) -> int:
        """Bytes of all written files."""
        return sum(artefact.nbytes for artefact in self.artefacts)

    @property
    def ratio(self) -> float:
        """How many times smaller the artefact is than the source tensors."""
        return self.source_bytes / max(self.nbytes, 1)

    @property
    def mean_error(self) -> float | None:
        """Root of the mean squared relative error, weighted by parameters; None where not measured."""
        rows = [(t.weights, e.relative) for t, e in zip(self.plan.tensors, self.errors, strict=False)]
        known = [(weights, error) for weights, error in rows if error is not None]
        total = sum(weights for weights, _ in known)
        return math.sqrt(sum(weights * error * error for weights, error in known) / total) if total else None

    def to_object(self) -> dict[str, object]:
        """Return the Card as plain values, ready for JSON."""
        derived = {"bytes": self.nbytes, "ratio": self.ratio, "mean_error": self.mean_error}
        derived |= {"bits_per_weight": self.plan.bits_per_weight, "weights": self.plan.weights}
        return {**plain(self), "summary": plain(derived)}

    def to_json(self) -> str:
        """Return the Card as one JSON document."""
        return to_json_text(self.to_object())

    @classmethod
    def from_json(cls, text: str, *, place: str = "card") -> Card:
        """Read what `to_json` wrote, by this version or an earlier one; FormatError names `place` and what is wrong."""
        document = from_json_text(text, place)
        if isinstance(document, dict):
            schema = document.get("schema", CARD_SCHEMA)
            if schema == FIRST_SCHEMA:
                document = _second(document)
            elif schema != CARD_SCHEMA:
                raise FormatError(f"{place}: schema {schema!r:.60}, this version reads {CARD_SCHEMA!r}")
            document.pop("summary", None)
            plan = Plan.from_object(document.get("plan", {}), place=f"{place}: plan")
            document["plan"] = plain(plan)
        card = read_record(Card, document, place)
        _check_counts(card, place)
        return card

    def to_markdown(self, *, tensors: bool = True) -> str:
        """Return the Card as one page, the summary first and, unless `tensors` is False, every tensor last."""
        return card_markdown(self, tensors=tensors)


def card_path(artefact: Path, suffix: str = "md") -> Path:
    """Return where the Card of an artefact lies: beside it, as `NAME.card.md`, `.json` or `.html`; parts share one.

    >>> card_path(Path("out/model.gguf")).as_posix(), card_path(Path("m-00001-of-00003.gguf"), "json").as_posix()
    ('out/model.card.md', 'm.card.json')
    """
    stem = PART.sub("", artefact.name.removesuffix(".gguf"))
    return artefact.with_name(f"{stem}.card.{suffix}")


def _second(document: dict[str, Any]) -> dict[str, Any]:
    """A Card of the first version as one of the second."""
    errors = document.get("errors")
    nothing = {"method": "", "output": None, "plain": None, "note": ""}
    if isinstance(errors, list):
        errors = [{**nothing, **row} if isinstance(row, dict) else row for row in errors]
    return {**document, **{name: [] for name in SINCE_SECOND}, "errors": errors, "schema": CARD_SCHEMA}


def _check_counts(card: Card, place: str) -> None:
    """Refuse counts that no run can have found."""
    for name, count in (("source_bytes", card.source_bytes), *((a.name, a.nbytes) for a in card.artefacts)):
        if count < 0:
            raise FormatError(f"{place}: {name}: {count} is no count of bytes")
    for index, evaluation in enumerate(card.evaluations):
        for histogram in evaluation.histograms:
            edges, counts = histogram.edges, histogram.counts
            if (
                len(edges) != len(counts) + 1
                or not all(low < high for low, high in pairwise(edges))
                or min(counts, default=0) < 0
            ):
                raise FormatError(
                    f"{place}: evaluations[{index}]: histogram {histogram.name!r:.60}: {len(edges)} edges around "
                    f"{len(counts)} counts; edges must rise and be one more than counts, counts not be negative"
                )
