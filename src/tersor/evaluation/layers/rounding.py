"""Is what a block decodes to a rounding of what it should hold?

Two measures of each group of values that share a scale, both logarithms of ratios of root mean squares:

excess     the error, over the error of the same values quantized anew. A search that minds importance may make it
           large for single groups: it gives up a weight that hardly matters.
misplaced  the error, over the distance to the nearest level that the values of the *same group* give away. Rounding
           takes the nearest level of whatever grid was chosen, so this is zero for every honest search, good or bad;
           a wrong scale, wrong codes or other weights than the source's cannot hide from it.

What this cannot see is what rounding could have been: a factor of 2 on ternary weights, or on 16 weights of 2 bits.

Measured over formats, searches, importances and heavy-tailed weights, honest rounding had misplaced ≤ 0.33 (the legacy
formats with importance, whose scale is rounded after the codes are chosen; all others 0.00). Both are also held against
the tensor's own spread, so that a method that does not round to nearest on purpose is not blamed for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import TersorError
from tersor.evaluation.layers.geometry import Geometry, nearest_distances

__all__ = ["RoundingTest", "Suspect"]

MISPLACED, EXCESS = 0.5, 0.4
"""A group is at fault where it is beyond both."""
LENIENCE = 0.5
"""Taken off where clipped values are left out: the few that remain may all be at the edge of their level."""
SURE_EXCESS = 0.3
"""The same for the excess alone, in formats that leave no choice, where 98 % of groups lie within CALM."""
CALM = 0.05
ONE_WAY = ("f32", "f16", "bf16", "binary")
ALIKE, ALIKE_CALMLY = 3.0, 1.0
"""Excess of a group that decodes to zeros while others of its block do not; the second where no importance shows."""
CANDIDATE = 0.25
LARGE = 0.4
"""No group is at fault whose relative error is below this, or twice the bound of its format if that is less."""
SPREAD = 11.0
FEW = 16
SAMPLED, KEPT = 4096, 1 << 18
_FLOOR, _EXACT_FLOOR = 1e-4, 1e-6
_EDGES = np.linspace(-6.0, 14.0, 2001)


@dataclass(frozen=True, slots=True)
class Suspect:
    """Groups at fault in one tensor: row and first column of each, [n], and their size in columns."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    width: int


@dataclass
class RoundingTest:
    """Takes a tensor slice by slice, then names the groups that rounding does not explain.

    bound  the relative error that stands in where the values cannot be quantized anew
    """

    geometry: Geometry
    columns: int
    bound: float
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    sample: list[npt.NDArray[np.float64]] = field(default_factory=list)
    candidates: list[tuple[npt.NDArray[np.float64], ...]] = field(default_factory=list)
    kept: int = 0

    def add(self, start: int, found: Float32, wanted: Float32) -> None:
        """Judge rows `start`…: decoded and original values, [rows, columns], all finite."""
        width = self.geometry.inner
        honest = self._quantized_anew(wanted)
        here, there = found.reshape(-1, width), wanted.reshape(-1, width)
        error, (expected, power) = _squares(here - there), self._expected(wanted, honest)
        excess = np.log(np.maximum(error, 1e-4 * expected) / expected) / 2
        self.counts += np.histogram(np.clip(excess, _EDGES[0], _EDGES[-1]), _EDGES)[0]
        alike = here.max(axis=1) == here.min(axis=1)
        zero = alike & (here[:, 0] == 0)
        if honest is not None:
            alike &= np.ptp(honest.reshape(-1, width), axis=1) > 0
        parts = self.geometry.block // width
        whole = alike.reshape(-1, parts).all(axis=1).repeat(parts)
        whole |= (power == 0) & (error > 0)
        self._sample(here, there, error, expected)
        large = error > min(2 * self.bound, LARGE) ** 2 * power
        chosen = np.flatnonzero(large & ((excess > CANDIDATE) | (whole & (excess > 0.05))))[: max(0, KEPT - self.kept)]
        self.kept += len(chosen)
        misplaced = self._misplaced(here[chosen], there[chosen], error[chosen], expected[chosen])
        place = chosen + start * (self.columns // width)
        flags = zero[chosen] + 2.0 * whole[chosen]
        self.candidates.append((place.astype(np.float64), excess[chosen], misplaced, flags))

    def suspects(self) -> Suspect:
        """Return the groups at fault, in order."""
        width, across = self.geometry.inner, self.columns // self.geometry.inner
        place, excess, misplaced, flags = (
            (np.concatenate(parts) for parts in zip(*self.candidates, strict=True))
            if self.candidates
            else (np.empty(0),) * 4
        )
        middle, high = self._quantile(0.5), self._quantile(0.99)
        bad = (misplaced > self._usual_misplaced()) & (excess > EXCESS)
        bad |= flags >= 2  # the whole block decodes to one value, and need not
        bad |= (flags == 1) & (excess > (ALIKE_CALMLY if high < SURE_EXCESS else ALIKE))
        if self.geometry.label.lower() in ONE_WAY and high - self._quantile(0.01) < CALM:
            bad |= excess > middle + SURE_EXCESS
        groups = place[bad].astype(np.int64)
        return Suspect(groups // across, groups % across * width, width)

    def _quantized_anew(self, wanted: Float32) -> Float32 | None:
        form = self.geometry.format
        if form is None:
            return None
        try:
            search = "best" if form.family == "ternary" else "ggml"  # whose ternary scale is up to four times too large
            return form.decode(form.encode(wanted, search=search), wanted.shape[1])
        except TersorError:  # magnitudes that this format cannot hold
            return None

    def _expected(
        self, wanted: Float32, honest: Float32 | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean squared error, [groups], that rounding explains, and mean square of the block; neither of the group's.

        A group of a block may be small beside its neighbours; its scale is rounded with theirs.
        """
        width, parts = self.geometry.inner, self.geometry.block // self.geometry.inner
        power = _squares(wanted.reshape(-1, width)).reshape(-1, parts).mean(axis=1).repeat(parts)
        floor = _EXACT_FLOOR if self.geometry.label in {"F32", "F64"} else _FLOOR
        least = np.maximum(floor**2 * power, 1e-12 * max(float(power.mean()), 1e-24))
        if honest is None:
            return np.maximum(self.bound**2 * power, least), power
        error = _squares((honest - wanted).reshape(-1, width))
        return np.maximum(np.maximum(error, error.reshape(-1, parts).mean(axis=1).repeat(parts)), least), power

    def _sample(
        self, found: Float32, wanted: Float32, error: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]
    ) -> None:
        """Keep how misplaced some groups are, evenly over the slice."""
        room = SAMPLED - sum(map(len, self.sample))
        chosen = np.arange(0, len(found), max(1, len(found) // 256))[: max(0, room)]
        self.sample.append(self._misplaced(found[chosen], wanted[chosen], error[chosen], expected[chosen]))

    def _misplaced(
        self, found: Float32, wanted: Float32, error: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Of all values of each group, or of those within its range: what is clipped would hide the rest."""
        least = 0.01 * expected
        distance = nearest_distances(found, wanted, is_even=self.geometry.is_even)
        everywhere = np.log(np.maximum(error, least) / np.maximum(_squares(distance), least))
        inside = (wanted >= found.min(axis=1, keepdims=True)) & (wanted <= found.max(axis=1, keepdims=True))
        here, nearest = _squares((found - wanted) * inside), _squares(distance * inside)
        within = np.log(np.maximum(here, least) / np.maximum(nearest, least))
        made: npt.NDArray[np.float64] = np.maximum(everywhere / 2, within / 2 - LENIENCE)
        return made

    def _usual_misplaced(self) -> float:
        """What this tensor's own method makes of groups at the most, MISPLACED at the least.

        Taken from the lower quarter, which stays honest where half of the heads are in the wrong place: for normally
        spread values this is six deviations above their mean.
        """
        sample = np.concatenate(self.sample) if self.sample else np.zeros(1)
        if len(sample) < FEW:
            return MISPLACED
        low, quarter = np.quantile(sample, [0.1, 0.25])
        return max(MISPLACED, float(quarter + SPREAD * (quarter - low)))

    def _quantile(self, share: float) -> float:
        below = np.cumsum(self.counts)
        if not len(below) or below[-1] == 0:
            return 0.0
        return float(_EDGES[1 + int(np.searchsorted(below, share * below[-1]))])


def _squares(values: Float32) -> npt.NDArray[np.float64]:
    made: npt.NDArray[np.float64] = np.einsum("ij,ij->i", values, values, dtype=np.float64) / values.shape[1]
    return made
