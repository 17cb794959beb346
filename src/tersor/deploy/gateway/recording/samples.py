"""Windows of features, and what they are compared with: a reservoir each, bounded whatever comes."""

from __future__ import annotations

import math
import random
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.deploy.gateway.recording.features import Features, of_row, of_text
from tersor.deploy.monitor import Drift, FalseAlarmBudget, Histogram, alarming, drift

__all__ = [
    "FIRST",
    "LABELS",
    "MOST_BYTES",
    "Findings",
    "Reference",
    "Reservoir",
    "compared",
    "reference_of",
    "reference_of_file",
]

MOST = 1000
FIRST = 500
"""Requests that make a reference where nobody gave one."""
LEAST = 50
"""Requests without which a window says nothing."""
MOST_FEATURES = 64
MOST_BYTES = 256 << 20
CELLS = 20
LABELS = "labels"
"""Array of an .npz that holds the right classes, and is no input."""


@dataclass(slots=True)
class Reservoir:
    """A fair sample of a window: each of `seen` is in it with the same probability (Vitter 1985, algorithm R)."""

    seen: int = 0
    kept: list[Features] = field(default_factory=list)
    most: int = MOST

    def place(self) -> int | None:
        """Count one, and return where it belongs; None where it is not to be looked at."""
        self.seen += 1
        if len(self.kept) < self.most:
            return len(self.kept)
        place = int(random.random() * self.seen)  # noqa: S311  # a sample, no secret
        return place if place < self.most else None

    def put(self, place: int, features: Features) -> None:
        """Keep one where `place` said."""
        if place < len(self.kept):
            self.kept[place] = features
        else:
            self.kept.append(features)


@dataclass(frozen=True, slots=True)
class Reference:
    """What features looked like: name → histogram, and where that is from, in words."""

    source: str
    features: Mapping[str, Histogram]

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        rows = {
            name: {"edges": list(one.edges), "counts": list(one.counts), "missing": one.missing}
            for name, one in self.features.items()
        }
        return {"source": self.source, "features": rows}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Reference:
        """Read what `to_object` made; SchemeError, KeyError or TypeError for anything else."""
        features = {
            name: Histogram(tuple(map(float, one["edges"])), tuple(map(int, one["counts"])), int(one["missing"]))
            for name, one in dict(given["features"]).items()
        }
        return cls(str(given["source"]), features)


@dataclass(frozen=True, slots=True)
class Findings:
    """What one window showed: each feature, and those that drifted, the plainest first."""

    requests: int
    features: Mapping[str, Drift]
    drifted: tuple[str, ...]


def reference_of(source: str, sample: Sequence[Features]) -> Reference:
    """Return the reference that a sample makes; features that it knows too little of are left out."""
    names = list(dict.fromkeys(name for one in sample for name in one))[:MOST_FEATURES]
    found = {}
    for name in names:
        values = [one.get(name, math.nan) for one in sample]
        if sum(map(math.isfinite, values)) >= CELLS:
            found[name] = Histogram.of(values, cells=CELLS)
    return Reference(source, found)


def compared(reference: Reference, window: Sequence[Features], budget: FalseAlarmBudget) -> Findings | None:
    """Compare a window with the reference, all features within one budget; None where it is too small to tell."""
    if len(window) < LEAST or not reference.features:
        return None
    draws = budget.draws(len(reference.features))
    found = {}
    for name, histogram in reference.features.items():
        values = [one.get(name, math.nan) for one in window]
        finite = [value if math.isfinite(value) else math.nan for value in values]
        found[name] = drift(histogram, histogram.count(finite), draws=draws)
    p_values = {name: one.p_value for name, one in found.items()}
    return Findings(len(window), found, alarming(p_values, budget))


def reference_of_file(path: Path) -> Reference:
    """Return the reference of the data that a model was calibrated with.

    path  .npz or .npy, a row an example (npz: an array an input, named like it, and `labels`, which is none); else
          UTF-8 text, a line a request

    Raises MissingError, FormatError for what is none of them, SchemeError for too few examples.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such file of calibration data")
    if path.stat().st_size > MOST_BYTES:
        raise FormatError(
            f"{path}: {path.stat().st_size:,} bytes; a sample of {MOST_BYTES >> 20} MiB at most tells enough"
        )
    try:
        sample = list(_rows(path)) if path.suffix in (".npz", ".npy") else list(_lines(path))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: no calibration data ({' '.join(str(error).split())[:120]})") from error
    if len(sample) < LEAST:
        raise SchemeError(f"{path}: {len(sample)} examples; {LEAST} or more are needed to know what is usual")
    return reference_of(f"calibration data, {len(sample)} examples", sample)


def _lines(path: Path) -> Iterable[Features]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return (of_text(line) for line in lines[:: max(1, len(lines) // 10_000)])


def _rows(path: Path) -> Iterable[Features]:
    with path.open("rb") as file:  # numpy leaves a file open that turns out broken
        loaded = np.load(file, allow_pickle=False)
        is_one = isinstance(loaded, np.ndarray)
        arrays = {path.stem: loaded} if is_one else {name: loaded[name] for name in loaded.files if name != LABELS}
    if not arrays or any(one.dtype.kind not in "biuf" or not one.ndim for one in arrays.values()):
        raise ValueError("arrays of numbers are wanted, a row an example")
    length = min(map(len, arrays.values()))
    for number in range(0, length, max(1, length // 10_000)):
        found: dict[str, float] = {}
        for name, array in arrays.items():
            found |= of_row(name, array[number])
        yield found
