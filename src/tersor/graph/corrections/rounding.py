"""Weights of every operator by the methods that know its inputs: group by group, a depthwise one at once.

Source: the methods of `tersor.methods`. Rows with a Hessian of their own: coordinate descent on the codes of a
fixed scale (the problem as Nagel et al. 2020, arXiv:2004.10568, pose it; solved here without gradients).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.graph.corrections.statistics import InputStatistics, merged
from tersor.graph.net import Array, Net, constant
from tersor.graph.placement.sites import WEIGHT, Placement, Site
from tersor.graph.scheme import Integers, Quantizer, Scheme
from tersor.graph.weights import RoundedWeight, as_matrix, rounded_weight, stored_by
from tersor.kernels.lazy import LazyModule
from tersor.methods import METHODS

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["round_with_statistics", "rounded_rows", "rounded_with_statistics", "wants_statistics"]

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
    """Round the weights of all operators on integers, by node; rtn where statistics that are needed are absent.

    Operators that share a weight share what becomes of it, rounded for the inputs of all.
    """
    nodes = {str(node.name): node for node in net.nodes}
    alone, made = "rtn" if wants_statistics(method) else method, {}
    sharing: dict[tuple[str, Scheme], list[str]] = {}
    for name, site in placement.weights.items():
        sharing.setdefault((site.value, site.scheme), []).append(name)
    for names in sharing.values():
        site, weight = placement.weights[names[0]], constant(nodes[names[0]].inputs[WEIGHT])
        assert weight is not None, "a weight site without a constant"
        known = merged([statistics[name] for name in names if name in statistics])
        found = (
            rounded_weight(weight, site, alone)
            if known is None
            else rounded_with_statistics(weight, site, method, known)
        )
        made.update(dict.fromkeys(names, stored_by(placement.engine, found)))
    return {name: made[name] for name in placement.weights}


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
        grid = rounded_weight(weight, site).quantizer
        codes = rounded_rows(as_matrix(weight, axis), hessians, grid.scale, site.scheme.lowest, site.scheme.highest)
        return RoundedWeight(codes.reshape(weight.shape).astype(site.scheme.dtype), grid)
    parts = [
        rounded_weight(weight[place * rows : (place + 1) * rows], site, method, **_needed(method, known, place))
        for place in range(groups)
    ]
    scale = np.concatenate([part.quantizer.scale for part in parts])
    zero = np.concatenate([part.quantizer.zero_point for part in parts])
    return RoundedWeight(np.concatenate([part.codes for part in parts]), Quantizer(scale, zero, site.scheme))


def _needed(method: str, known: InputStatistics, group: int) -> dict[str, Any]:
    return {"hessian": torch.from_numpy(known.hessian[group])} if wants_statistics(method) else {}


def rounded_rows(weight: Float32, hessians: Float32, scale: Float32, lowest: int, highest: int) -> Integers:
    """Return codes [rows, columns] for rows that each have a Hessian, [rows, columns, columns], and a scale, [rows].

    A row never has a larger eᵀHe, damped, than rounding to nearest gives it.
    """
    w, h, s = (part.astype(np.float64) for part in (weight, hessians, scale))
    columns = w.shape[1]
    h = h + DAMPING * (np.trace(h, axis1=1, axis2=2)[:, None, None] / columns + 1e-12) * np.eye(columns)
    codes: Integers = _descended(w, h, s, lowest, highest).astype(np.int32)
    return codes


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
