"""How the values of a format hang together: which neighbours share a scale, and how far apart its levels are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.format import Format
from tersor.formats import FORMATS

__all__ = ["Geometry", "geometry_of", "nearest_distances"]

_INNER: Mapping[str, int] = {"q2_k": 16, "q3_k": 16, "q4_k": 32, "q5_k": 32, "q6_k": 16, "iq4_xs": 32}
"""Weights that share one scale inside a block that has several."""
_EDGE: Mapping[str, float] = {"iq4_nl": 24 / 9, "iq4_xs": 24 / 9, "mxfp4": 4.0, "nvfp4": 4.0}
"""Distance of the outermost two levels / the smallest distance of two, where the levels are not evenly spaced."""
_RUN = 32
"""Columns judged together where a format has no blocks, or one that is not known here."""
_PAIRS = 1 << 22


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is judged together in one tensor.

    label   the format as its file calls it, such as "Q4_K"
    format  the row of FORMATS, None for one that is not in the table
    block   columns of a block
    inner   columns that share a scale: a block is one or more of these
    """

    label: str
    format: Format | None
    block: int
    inner: int

    @property
    def is_plain(self) -> bool:
        """Whether it holds floats, without blocks and scales."""
        return self.format is not None and self.format.family == "float"

    @property
    def is_even(self) -> bool:
        """Whether the levels of a group are evenly spaced."""
        return self.format is not None and self.format.family not in ("float", "lookup")

    def clipped(self, found: Float32, wanted: Float32) -> int:
        """Count the values beyond the range of what their block decodes to, by more than half a step.

        found, wanted  [n, inner]: decoded and original values that share a scale. The step is the smallest distance
        of two different decoded values, times the ratio of the outermost to the smallest distance where the levels are
        not even; so it is never taken too small, and a block that decodes to one value has none and is not counted.
        """
        if self.format is None or self.is_plain:
            return 0
        low, high = found.min(axis=1), found.max(axis=1)
        beyond = np.maximum(wanted - high[:, None], low[:, None] - wanted)
        levels = max(1.0, (self.format.highest - self.format.lowest) / self.format.step)
        rows = np.flatnonzero((beyond.max(axis=1) > (high - low) / (2 * levels)) & (high > low))
        gaps = np.diff(np.sort(found[rows], axis=1), axis=1)
        step = np.where(gaps > 0, gaps, np.inf).min(axis=1, initial=np.inf) * _EDGE.get(self.format.name, 1.0)
        return int((beyond[rows] > 0.501 * step[:, None]).sum())


def geometry_of(label: str, columns: int) -> Geometry:
    """Return the geometry of a tensor of `columns` columns stored as `label`.

    >>> geometry_of("Q6_K", 512).inner, geometry_of("F16", 48).inner, geometry_of("F32", 7).inner
    (16, 16, 7)
    """
    form = FORMATS.get(label.lower())
    if form is not None and form.block > 1 and columns % form.block == 0:
        return Geometry(label, form, form.block, _INNER.get(form.name, form.block))
    run = math.gcd(columns, _RUN)
    run = run if run >= _RUN // 4 else columns
    return Geometry(label, form, run, run)


def nearest_distances(found: Float32, wanted: Float32, *, is_even: bool) -> Float32:
    """Distance of each wanted value to the nearest level that the found ones in its row give away; all [n, inner].

    is_even  levels are evenly spaced: besides the found values themselves all steps between the least and the largest
             are levels, a step being the smallest distance of two. Else only the found values are.
    """
    made = np.abs(found - wanted)
    if not is_even:
        count = max(1, _PAIRS // max(1, found.shape[1] ** 2))
        for start in range(0, len(found), count):
            there, here = found[start : start + count, None, :], wanted[start : start + count, :, None]
            made[start : start + count] = np.abs(here - there).min(axis=2)
        return np.asarray(made, np.float32)
    gaps = np.diff(np.sort(found, axis=1), axis=1)
    step = np.where(gaps > 0, gaps, np.inf).min(axis=1, initial=np.inf)[:, None]
    step = np.where(np.isfinite(step), step, 1.0).astype(np.float32)
    low, high = found.min(axis=1, keepdims=True), found.max(axis=1, keepdims=True)
    code = np.clip(np.rint((wanted - low) / step), 0, np.floor((high - low) / step + np.float32(1e-3)))
    level = (low + code * step).astype(np.float32)
    nearest: Float32 = np.minimum(np.minimum(made, np.abs(wanted - level)), np.abs(wanted - high))
    return nearest
