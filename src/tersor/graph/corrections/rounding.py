"""Weights of every operator by the methods that know its inputs: group by group, a depthwise one at once.

Source: the methods of `tersor.methods`. Rows with a Hessian of their own: coordinate descent on codes, on the best of
some scales (as Nagel et al. 2020, arXiv:2004.10568, pose the problem; solved here without gradients).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.graph.corrections.statistics import InputStatistics
from tersor.graph.net import Array, Net, constant
from tersor.graph.placement import WEIGHT, Placement, Site
from tersor.graph.scheme import Integers, Quantizer
from tersor.graph.weights import RoundedWeight, as_matrix, rounded_weight
from tersor.kernels.lazy import LazyModule
from tersor.methods import METHODS

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["round_with_statistics", "rounded_rows", "rounded_with_statistics", "wants_statistics"]

SHARES = tuple(float(share) for share in np.linspace(1.05, 0.5, 23))
"""Of the scale that reaches the largest weight: what coordinate descent is tried for."""
SWEEPS = 4
DAMPING = 0.01
GROUPS = 32
"""Groups that a method takes one after the other; more of them are small, and rounded together."""


def wants_statistics(method: str) -> bool:
    """Whether a method of METHODS cannot do without a Hessian."""
    if method not in METHODS:
        raise SchemeError(f"no method {method!r} for weights; there are {', '.join(METHODS)}")
    return "hessian" in METHODS[method].needs


def round_with_statistics(
    net: Net, placement: Placement, method: str, statistics: Mapping[str, InputStatistics]
) -> dict[str, RoundedWeight]:
    """Round the weights of all operators on integers, by node; rtn where an operator has no statistics."""
    nodes = {str(node.name): node for node in net.nodes}
    made = {}
    for name, site in placement.weights.items():
        weight = constant(nodes[name].inputs[WEIGHT])
        assert weight is not None, "a weight site without a constant"
        known = statistics.get(name)
        made[name] = (
            rounded_weight(weight, site) if known is None else rounded_with_statistics(weight, site, method, known)
        )
    return made


def rounded_with_statistics(weight: Array, site: Site, method: str, known: InputStatistics) -> RoundedWeight:
    """Round one weight for its inputs.

    method  a key of METHODS; one that needs no Hessian gets nothing: a scale fitted to the mean squares of the columns
            alone was worse than none (docs/log.md)
    known   of as many groups as the weight has
    """
    if len(known.hessian) == 1:
        return rounded_weight(weight, site, method, **_needed(method, known, 0))
    axis = site.scheme.axis
    assert axis == 0, "only convolutions have groups, and their outputs come first"
    groups = len(known.hessian)
    rows = len(weight) // groups
    if groups > GROUPS and wants_statistics(method):
        hessians = np.repeat(known.hessian, rows, axis=0)
        codes, scale = rounded_rows(as_matrix(weight, axis), hessians, site.scheme.lowest, site.scheme.highest)
        zero = np.zeros(scale.shape, site.scheme.dtype)
        made = codes.reshape(weight.shape).astype(site.scheme.dtype)
        return RoundedWeight(made, Quantizer(scale, zero, site.scheme))
    parts = [
        rounded_weight(weight[place * rows : (place + 1) * rows], site, method, **_needed(method, known, place))
        for place in range(groups)
    ]
    scale = np.concatenate([part.quantizer.scale for part in parts])
    zero = np.concatenate([part.quantizer.zero_point for part in parts])
    return RoundedWeight(np.concatenate([part.codes for part in parts]), Quantizer(scale, zero, site.scheme))


def _needed(method: str, known: InputStatistics, group: int) -> dict[str, Any]:
    return {"hessian": torch.from_numpy(known.hessian[group])} if wants_statistics(method) else {}


def rounded_rows(weight: Float32, hessians: Float32, lowest: int, highest: int) -> tuple[Integers, Float32]:
    """Return codes [rows, columns] and scales [rows] for rows that each have a Hessian, [rows, columns, columns].

    Of all scales tried, each row keeps the one with the least eᵀHe, and never more than rounding to nearest has.
    """
    w = weight.astype(np.float64)
    h = hessians.astype(np.float64)
    columns = w.shape[1]
    h = h + DAMPING * (np.trace(h, axis1=1, axis2=2)[:, None, None] / columns + 1e-12) * np.eye(columns)
    widest = np.maximum(np.abs(w).max(axis=1), np.finfo(np.float32).tiny) / highest
    least = np.full(len(w), np.inf)
    codes, scales = np.zeros(w.shape, np.int32), np.ones(len(w), np.float32)
    for share in SHARES:
        scale = (widest * share).astype(np.float32)
        tried = _descended(w, h, scale.astype(np.float64), lowest, highest)
        lost = _lost(w - tried * scale[:, None], h)
        better = lost < least
        least[better], scales[better], codes[better] = lost[better], scale[better], tried[better].astype(np.int32)
    return codes, scales


def _descended(w: Array, h: Array, scale: Array, lowest: int, highest: int) -> Array:
    """Return codes of which none can be changed alone for the better, or SWEEPS rounds on the way there."""
    q = np.clip(np.rint(w / scale[:, None]), lowest, highest)
    g = np.einsum("rij,rj->ri", h, w - q * scale[:, None])
    for _ in range(SWEEPS):
        before = q.copy()
        for j in range(w.shape[1]):
            wanted = q[:, j] + g[:, j] / (h[:, j, j] * scale)
            moved = np.clip(np.rint(wanted), lowest, highest) - q[:, j]
            q[:, j] += moved
            g -= h[:, :, j] * (moved * scale)[:, None]
        if np.array_equal(q, before):
            break
    return q


def _lost(error: Array, h: Array) -> Array:
    return np.asarray(np.einsum("ri,rij,rj->r", error, h, error))
