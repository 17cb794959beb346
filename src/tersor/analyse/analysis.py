"""What is known of a model's sensitivity: the value that `tersor analyse` saves and that plans are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from tersor.analyse.allocation import Option
from tersor.analyse.ranges import Ranges
from tersor.core.errors import FormatError
from tersor.core.records import from_json_text, plain, read_record, read_text, to_json_text

__all__ = ["ANALYSIS_SCHEMA", "AnalysedTensor", "Analysis", "Candidate", "Measured"]

ANALYSIS_SCHEMA = "tersor.analysis/1"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One format that a tensor could take.

    kl          divergence of the model's predictions if only this tensor took it, nats per token, to second order
    weight, importance, output, method  see Errors
    """

    format: str
    nbytes: int
    kl: float
    weight: float
    importance: float | None
    output: float | None
    method: str


@dataclass(frozen=True, slots=True)
class AnalysedTensor:
    """A tensor that has a choice; candidates in the order they were asked for."""

    name: str
    shape: tuple[int, ...]
    ranges: Ranges
    candidates: tuple[Candidate, ...]

    def candidate(self, name: str) -> Candidate | None:
        """Return the candidate of a format, None where it was not looked at."""
        return next((one for one in self.candidates if one.format == name), None)


@dataclass(frozen=True, slots=True)
class Measured:
    """A divergence that was estimated, and then measured on the same sequences.

    what       "single": one tensor rounded; "mix": all of them, each as it was rounded alone; "run": all of them by a
               run of the method through the model, in which matrices make good what earlier ones did wrong
    name       tensor and format, or the size of the mix
    estimated  sum of second-order divergences, nats
    measured   nats
    together   of a run: what its mix came to put together, nats; None: that was not measured
    """

    what: Literal["single", "mix", "run"]
    name: str
    estimated: float
    measured: float
    together: float | None = None


@dataclass(frozen=True)
class Analysis:
    """Sensitivities of one model for one method and calibration text.

    sources     name and SHA-256 of the model's files
    calibration the text: name, sequences × tokens, seed, SHA-256
    draws       random vectors that the estimates rest on; each is good to √(2/draws)
    tokens      of the sequences that divergences were estimated and measured on
    kept_bytes  bytes of tensors that have no choice, encoded
    container   what shall hold the model: it says which tensors have to take one format
    weights     parameters of the whole model
    together    divergence of a mix with what its tensors do together, over the sum of what each does alone, by its name
    seconds     time of each stage
    """

    model: str
    architecture: str
    sources: Mapping[str, str]
    method: str
    calibration: str
    draws: int
    tokens: int
    kept_bytes: int
    container: str
    weights: int
    tensors: tuple[AnalysedTensor, ...]
    measured: tuple[Measured, ...] = ()
    together: Mapping[str, float] = ()  # type: ignore[assignment]  # an empty mapping is made of it at once
    seconds: Mapping[str, float] = ()  # type: ignore[assignment]
    schema: str = ANALYSIS_SCHEMA

    @cached_property
    def _curve(self) -> tuple[list[float], list[float]]:
        """Logarithms of estimates, rising, and of what was measured over them."""
        mixes = sorted((one.estimated, one.measured) for one in self.measured if one.what == "mix" and one.measured > 0)
        return [float(np.log(x)) for x, _ in mixes], [float(np.log(y / x)) for x, y in mixes]

    @cached_property
    def _run_factor(self) -> float:
        """What runs of the method came to over the same mixes put together from matrices rounded alone.

        It differs from size to size (0.75 to 1 on the embedded model), so one run is half believed, as if another had
        come to 1.
        """
        runs = [one for one in self.measured if one.what == "run"]
        ratios = [one.measured / (one.together or self._stitched(one.estimated)) for one in runs]
        return float(np.exp(np.log(ratios).sum() / (len(ratios) + 1))) if ratios else 1.0

    def _stitched(self, loss: float) -> float:
        places, ratios = self._curve
        if not places or loss <= 0:
            return loss
        return loss * float(np.exp(np.interp(np.log(loss), places, ratios)))

    def predicted(self, loss: float, together: float | None = None) -> float:
        """Return the divergence to expect, nats per token, where second-order divergences add up to `loss`.

        together  what this very mix came to put together; None: that was not measured
        Without it, the ratio of what was measured to the estimate is interpolated between measured mixes, and beyond
        them it is that of the last. Runs of the method move either.
        """
        return (self._stitched(loss) if together is None else together) * self._run_factor

    def options(self, groups: Mapping[str, Sequence[str]]) -> dict[str, list[Option]]:
        """Return what each group of tensors may take, all of them the same, with their losses added up."""
        found: dict[str, list[Option]] = {}
        tensors = {tensor.name: tensor for tensor in self.tensors}
        for leader, names in groups.items():
            held = [{one.format: one for one in tensors[name].candidates} for name in names]
            shared = [kind for kind in held[0] if all(kind in other for other in held)]
            found[leader] = [
                Option(kind, sum(other[kind].nbytes for other in held), sum(other[kind].kl for other in held))
                for kind in shared
            ]
        return found

    def to_json(self) -> str:
        """Return the analysis as a JSON document."""
        return to_json_text(plain(self))

    @classmethod
    def from_json(cls, text: str, *, place: str = "analysis") -> Analysis:
        """Read what `to_json` wrote; FormatError names `place` and what is wrong."""
        document = from_json_text(text, place)
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != ANALYSIS_SCHEMA:
            raise FormatError(f"{place}: schema {schema!r:.60}, this version reads {ANALYSIS_SCHEMA!r}")
        found = read_record(Analysis, document, place)
        for tensor in found.tensors:
            for one in tensor.candidates:
                if one.nbytes < 0 or not one.kl >= 0:
                    raise FormatError(f"{place}: {tensor.name} as {one.format}: {one.nbytes} bytes, {one.kl} nats")
        for row in found.measured:
            if row.estimated > 0 and row.measured >= 0 and (row.together is None or row.together >= 0):
                continue
            raise FormatError(f"{place}: a measured divergence is no positive number")
        return found

    @classmethod
    def load(cls, path: Path) -> Analysis:
        """Read a saved analysis."""
        return cls.from_json(read_text(path), place=str(path))
