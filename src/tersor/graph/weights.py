"""Weights of a net as integers, by any rounding method of `methods/`: a weight is a matrix, one row for each output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError
from tersor.formats import get
from tersor.formats.hf.groups import unpack_groups
from tersor.graph.net import Array, Net, constant
from tersor.graph.placement.engines import Engine
from tersor.graph.placement.sites import TABLE, Placement, Site
from tersor.graph.scheme import Integers, Quantizer
from tersor.kernels.lazy import LazyModule
from tersor.methods import METHODS

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch", "torch")

__all__ = ["RoundedWeight", "as_matrix", "rounded_tables", "rounded_weight", "stored_by"]


@dataclass(frozen=True, slots=True, eq=False)
class RoundedWeight:
    """Codes in the shape of the weight, and what they mean."""

    codes: Integers
    quantizer: Quantizer

    @property
    def values(self) -> Float32:
        """What the codes decode to."""
        return self.quantizer.values(self.codes)


def as_matrix(weight: Array, axis: int | None) -> Float32:
    """Return a weight as [outputs, all else], float32; one row where it has one scale."""
    if axis is None:
        return np.array(weight.reshape(1, -1), np.float32, order="C")
    return np.array(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), np.float32, order="C")


def rounded_weight(weight: Array, site: Site, method: str = "rtn", **statistics: Any) -> RoundedWeight:
    """Round one weight.

    method      a key of METHODS; rtn with `importance` searches for the scale with the least weighted error
    statistics  what the method needs: hessian [columns, columns], importance [columns] of the matrix of the weight
    """
    if method not in METHODS:
        raise SchemeError(f"no method {method!r} for weights; there are {', '.join(METHODS)}")
    scheme = site.scheme
    matrix = as_matrix(weight, scheme.axis)
    fmt = get(f"int{scheme.bits}-{'channel' if scheme.block is None else f'g{scheme.block}'}-sym")
    found = METHODS[method].function(torch.from_numpy(matrix), fmt, **statistics)
    groups = unpack_groups(found, 0, len(matrix))
    codes = groups.codes.astype(np.int16) - (1 << (scheme.bits - 1))
    scale = groups.scales.astype(np.float32)
    shape = weight.shape
    if scheme.block is None:
        scale = scale[:, 0]
    elif scheme.axis == 1:
        scale = np.ascontiguousarray(scale.T)
    if scheme.axis is None:
        made, scale = codes.reshape(shape), scale[0]
    else:
        rest = [size for place, size in enumerate(shape) if place != scheme.axis]
        made = np.moveaxis(codes.reshape(shape[scheme.axis], *rest), 0, scheme.axis)
    zero = np.zeros(np.shape(scale), scheme.dtype)
    return RoundedWeight(np.ascontiguousarray(made.astype(scheme.dtype)), Quantizer(np.asarray(scale), zero, scheme))


def stored_by(engine: Engine, weight: RoundedWeight) -> RoundedWeight:
    """Return a weight with the scales that an engine has room for: those of groups may have the bits of bfloat16."""
    quantizer = weight.quantizer
    if quantizer.scheme.block is None or not engine.short_scales:
        return weight
    short = torch.from_numpy(np.array(quantizer.scale)).to(torch.bfloat16).float().numpy()
    return RoundedWeight(weight.codes, replace(quantizer, scale=short))


def rounded_tables(net: Net, placement: Placement) -> dict[str, RoundedWeight]:
    """Round every table of a placement, by its Gather: to nearest, each row with the scale that fits it best."""
    nodes = {str(node.name): node for node in net.nodes}
    made: dict[str, RoundedWeight] = {}
    shared: dict[str, RoundedWeight] = {}
    for name, site in placement.tables.items():
        table = constant(nodes[name].inputs[TABLE])
        assert table is not None, "a table site without a constant"
        if site.value not in shared:
            shared[site.value] = rounded_weight(table, site)
        made[name] = shared[site.value]
    return made
