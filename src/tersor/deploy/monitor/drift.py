"""Has a feature drifted from the calibration sample? Three distances, and how often chance alone goes as far.

- PSI, the population stability index: Σ (p − q) ln(p / q), the symmetric Kullback–Leibler divergence. The folklore
  limits of 0.1 and 0.2 mean another thing for every number of cells and of requests; none is used here.
- JS, the Jensen–Shannon divergence (Lin 1991, IEEE Trans. Inf. Theory 37), in nats, 0 … ln 2.
- KS, the largest difference of the cumulated shares (Kolmogorov–Smirnov) at the edges of cells; of labels it is half
  the sum of all differences, for these have no order.

The p-value is that of windows drawn without drift, whatever the sizes of both samples are. It is valid by itself, with
any number of draws (Besag and Clifford 1991, "Sequential Monte Carlo p-values", Biometrika 78): drawing stops as soon
as a distance is plainly common, and goes on only where it is rare.

No distance sees two numbers in a hundred that lie far outside all that was calibrated on, yet these are what a
quantized layer clips. So how many there are has a test of its own, exact, and the two share the level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError, ShapeError
from tersor.deploy.monitor.reference import Histogram, Reference

__all__ = ["Distance", "Drift", "distances", "drift"]

Distance: TypeAlias = Literal["js", "psi", "ks"]
Float64: TypeAlias = npt.NDArray[np.float64]

COMMON = 20  # draws as far as what was seen, after which no more are needed
BATCH = 1000
SMOOTHING = 0.5  # added to every cell of the window, for PSI only: it is infinite at an empty cell


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a window lies from the calibration sample.

    psi, js, ks  the distances
    chosen       the distance that was tested
    p_value      probability of as much of it, or as much outside, without drift; twice the smaller of both
    draws        windows that were drawn for the distance
    size         numbers in the window, missing ones too
    outside      share of the window outside all that was calibrated on: below, above, labels never seen, missing
    """

    psi: float
    js: float
    ks: float
    chosen: Distance
    p_value: float
    draws: int
    size: int
    outside: float


def distances(reference: Reference, counts: npt.NDArray[Any]) -> Mapping[Distance, Float64]:
    """Return every distance of windows from the reference, [...] of counts [..., cells]."""
    q = reference.shares
    total = counts.sum(axis=-1, keepdims=True)
    p = counts / total
    smooth = (counts + SMOOTHING) / (total + SMOOTHING * len(q))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 ln 0 is 0
        ours, theirs = (
            np.where(side > 0, side * np.log(side / middle), 0.0) for side in (p, np.broadcast_to(q, p.shape))
        )
    differences = p - q
    if isinstance(reference, Histogram):
        ks = np.abs(np.cumsum(differences, axis=-1)).max(axis=-1)
    else:
        ks = np.abs(differences).sum(axis=-1) / 2
    psi = ((smooth - q) * np.log(smooth / q)).sum(axis=-1)
    return {"js": np.maximum(0.0, (ours + theirs).sum(axis=-1) / 2), "psi": psi, "ks": ks}


def drift(
    reference: Reference, counts: npt.NDArray[Any], *, chosen: Distance = "js", draws: int = 20_000, seed: int = 0
) -> Drift:
    """Return how far one window lies from the reference, and how often windows without drift lie as far.

    counts  [cells] of the window, from `reference.count`
    chosen  the distance to test; the others are for people
    draws   at most; the smallest p-value of a distance is 2/(draws + 1): see `FalseAlarmBudget.draws`
    seed    the same window and seed give the same p-value
    """
    cells = len(reference.shares)
    if counts.shape != (cells,) or counts.min() < 0 or not counts.sum():
        raise ShapeError(f"the counts of a window of one number or more are needed, [{cells}], got {counts!r:.80}")
    if chosen not in ("js", "psi", "ks") or draws < 1:
        raise SchemeError(f"js, psi or ks can be tested with one draw or more, got {chosen!r:.20}, {draws}")
    size, found = int(counts.sum()), distances(reference, counts)
    far = _far(reference, size, chosen, float(found[chosen]), np.random.default_rng(seed))
    p_value, made = _p_value(far, draws)
    cells_outside = [0, -2, -1] if isinstance(reference, Histogram) else [-2, -1]
    outside = int(counts[cells_outside].sum())
    rare = _outside_p_value(outside, size, float(reference.gaps[cells_outside].sum()), float(reference.gaps.sum()))
    p_value = min(1.0, 2 * min(p_value, rare))
    psi, js, ks = (float(found[name]) for name in ("psi", "js", "ks"))
    return Drift(psi, js, ks, chosen, p_value, made, size, outside / size)


def _far(
    reference: Reference, size: int, chosen: Distance, seen: float, rng: np.random.Generator
) -> Callable[[int], npt.NDArray[np.bool_]]:
    """Return a function that draws windows without drift, and says of each whether it lies as far as what was seen."""

    def draw(number: int) -> npt.NDArray[np.bool_]:
        return np.asarray(distances(reference, reference.draw(size, number, rng))[chosen] >= seen - 1e-12)

    return draw


def _p_value(far: Callable[[int], npt.NDArray[np.bool_]], draws: int) -> tuple[float, int]:
    """Return the p-value and the draws it took."""
    made, as_far = 0, 0
    while made < draws:
        number = min(BATCH, draws - made)
        places = np.flatnonzero(far(number))
        if as_far + len(places) >= COMMON:
            last = made + int(places[COMMON - as_far - 1]) + 1
            return COMMON / last, last
        made, as_far = made + number, as_far + len(places)
    return (as_far + 1) / (made + 1), made


def _outside_p_value(outside: int, size: int, gaps: float, total: float) -> float:
    """Probability of `outside` numbers or more of `size` in cells that span `gaps` of `total` gaps: beta-binomial."""
    k = np.arange(size, dtype=np.float64)
    rest = total - gaps
    steps = np.log((size - k) * (gaps + k) / ((k + 1) * (rest + size - k - 1)))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    chances = np.exp(logs - logs.max())
    return float(chances[outside:].sum() / chances.sum())
