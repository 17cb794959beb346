"""Every tensor of an artefact beside the one that it should hold, a few rows in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.evaluation import LayerError
from tersor.engines.activations import Activations
from tersor.evaluation.checks.tensors import Pair, TensorProgress
from tersor.evaluation.layers.faults import findings_of
from tersor.evaluation.layers.geometry import geometry_of
from tersor.evaluation.layers.rounding import RoundingTest
from tersor.models import Model, ModelTensor

__all__ = ["Sums", "compare_weights", "decibels"]

SLICE_WEIGHTS = 1 << 20


@dataclass
class Sums:
    """What a comparison of two streams of numbers adds up: Σx², Σy², Σxy, Σ(x - y)², max |x - y|, and how many."""

    power: float = 0.0
    other: float = 0.0
    product: float = 0.0
    error: float = 0.0
    largest: float = 0.0
    count: int = 0

    def add(self, wanted: Float32, found: Float32) -> None:
        """Take a piece of both, of one shape."""
        difference = found - wanted
        self.power += _dot(wanted, wanted)
        self.other += _dot(found, found)
        self.product += _dot(wanted, found)
        self.error += _dot(difference, difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.count += wanted.size

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise in decibels; None where there is no noise."""
        return decibels(self.power, self.error)

    @property
    def cosine(self) -> float | None:
        """Between both, flattened; None where one of them is zero."""
        if self.error == 0:
            return 1.0
        lengths = math.sqrt(self.power * self.other)
        return max(-1.0, min(1.0, self.product / lengths)) if lengths else None

    @property
    def largest_in_rms(self) -> float | None:
        """The largest difference in units of the root mean square of the original; None where that is zero."""
        if self.error == 0:
            return 0.0
        return self.largest / math.sqrt(self.power / self.count) if self.power else None


def decibels(signal: float, noise: float) -> float | None:
    """10·log10(signal / noise); None without noise, -300 at the least.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0)
    (20.0, None)
    """
    if noise == 0:
        return None
    return 10 * math.log10(max(signal / noise, 1e-30))


def compare_weights(
    artefact: Model, reference: Model, *, inputs: Activations | None = None, progress: TensorProgress | None = None
) -> tuple[LayerError, ...]:
    """Compare every tensor of `artefact`, decoded, with what `reference` holds, in the order of `reference`.

    inputs    what each weight was multiplied with in full precision; gives `entering_db`, the error of the product
              X Wᵀ that rounding W alone makes
    progress  called with the name of a tensor, and how many of all weights have been compared

    Values that are not finite count as zero, and are a finding. A tensor that one side lacks, or has in another shape,
    has nothing but a finding. Needs no torch and no engine.
    """
    found = {tensor.name: tensor for tensor in artefact.tensors}
    wanted = {tensor.name: tensor for tensor in reference.tensors}
    total = sum(math.prod(tensor.shape) for tensor in reference.tensors)
    rows: list[LayerError] = []
    done = 0
    for name, tensor in wanted.items():
        odd = _unpaired(found.get(name), tensor)
        if odd:
            rows.append(LayerError(name, tensor.kind, tensor.layer, None, None, None, findings=(odd,)))
        else:
            rows.append(_Comparison(Pair(found[name], tensor), inputs).row(artefact, wanted))
        done += math.prod(tensor.shape)
        if progress is not None:
            progress(name, done, total)
    surplus = "is in the artefact, but the source has nothing for it"
    rows += [
        LayerError(name, tensor.kind, tensor.layer, None, None, None, findings=(surplus,))
        for name, tensor in found.items()
        if name not in wanted
    ]
    return tuple(rows)


def _unpaired(found: ModelTensor | None, wanted: ModelTensor) -> str:
    if found is None:
        return "is missing"
    return "" if found.shape == wanted.shape else f"has shape {found.shape}, the source gives {wanted.shape}"


@dataclass
class _Comparison:
    """One tensor on its way: sums, the test of its rounding, values that are no numbers."""

    pair: Pair
    inputs: Activations | None
    sums: Sums = field(default_factory=Sums)
    signal: float = 0.0
    noise: float = 0.0
    clipped: int = 0
    strange: list[str] = field(default_factory=list)

    def row(self, artefact: Model, wanted: Mapping[str, ModelTensor]) -> LayerError:
        """Read both tensors once, and once more where something is wrong."""
        with np.errstate(over="ignore", invalid="ignore"):  # of values that no weight has; they are findings
            return self._row(artefact, wanted)

    def _row(self, artefact: Model, wanted: Mapping[str, ModelTensor]) -> LayerError:
        tensor = self.pair.wanted
        geometry = geometry_of(self.pair.found.source_dtype, tensor.columns)
        test = RoundingTest(geometry, tensor.columns, self.pair.bound)
        for start, here, there in self._slices():
            self.sums.add(there, here)
            test.add(start, here, there)
            width = geometry.inner
            self.clipped += geometry.clipped(here.reshape(-1, width), there.reshape(-1, width))
        error = math.sqrt(self.sums.error / self.sums.power) if self.sums.power else math.inf * self.sums.error
        error = 0.0 if math.isnan(error) else error
        findings = (*self._not_finite(), *findings_of(self.pair, test.suspects(), artefact, wanted, error))
        has_blocks = geometry.format is not None and not geometry.is_plain
        return LayerError(
            name=tensor.name,
            kind=tensor.kind,
            layer=tensor.layer,
            sqnr_db=self.sums.sqnr_db,
            cosine=self.sums.cosine,
            largest=self.sums.largest_in_rms,
            clipped=self.clipped / max(1, self.sums.count) if has_blocks else None,
            entering_db=decibels(self.signal, self.noise) if self.signal else None,
            findings=findings,
        )

    def _slices(self) -> Iterator[tuple[int, Float32, Float32]]:
        """Yield first row, decoded and original rows; none crosses from expert to expert."""
        tensor = self.pair.wanted
        group = tensor.shape[-2] if len(tensor.shape) > 2 else tensor.rows
        step = max(1, SLICE_WEIGHTS // tensor.columns)
        for first in range(0, tensor.rows, group):
            seen = self.inputs.input_of(tensor.name, first // group) if self.inputs is not None else None
            if seen is not None and seen.shape[1] != tensor.columns:
                seen = None
            for start in range(first, first + group, step):
                stop = min(start + step, first + group)
                here = self._finite(self.pair.found.read(start, stop), start, "")
                there = self._finite(self.pair.wanted.read(start, stop), start, "of the source ")
                if seen is not None:
                    self._multiply(seen, here, there)
                yield start, here, there

    def _multiply(self, seen: Float32, here: Float32, there: Float32) -> None:
        signal, noise = seen @ there.T, seen @ (here - there).T
        self.signal += _dot(signal, signal)
        self.noise += _dot(noise, noise)

    def _finite(self, values: Float32, start: int, whose: str) -> Float32:
        if np.isfinite(values).all():
            return values
        bad = np.argwhere(~np.isfinite(values))
        row, column = (int(index) for index in bad[0])
        self.strange.append(f"{len(bad)} values {whose}from row {start + row}, column {column} on are not finite")
        return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)

    def _not_finite(self) -> tuple[str, ...]:
        more = (f"and in {len(self.strange) - 2} more places",) if len(self.strange) > 2 else ()
        return (*self.strange[:2], *more)


def _dot(one: Float32, other: Float32) -> float:
    return float(np.einsum("ij,ij->i", one, other).sum(dtype=np.float64))
